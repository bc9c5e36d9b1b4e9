internal import PinKit
internal import Terminal

/// One break of sharing, as everybody concerned saw it (N4, N5, N9, N12).
struct NotifyBreakScene: DemoScene {
  let title = "a page breaks away from its clone"
  var breaks = 40
  var mechanisms: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .mprotect]

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "Two regions share a page, and one of them is written: the page must get a frame of its own. Two subscribers are told; the second "
        + "says at first that it would have to block, so the break backs off with nothing changed and comes again. A reader has the page "
        + "translated through a secondary MMU, and reads it all the time. This is the first break, from the write to its end:"
    )
    var found = DemoFindings()
    for mechanism in mechanisms {
      found.attempt("\(mechanism)", needing: [.mechanism(mechanism, .pool)], on: stage) { found in
        let record = try NotifyBreak.perform(mechanism, breaks: breaks)
        if mechanism == mechanisms.first {
          let actors = [
            NotifyBreak.writer, NotifyBreak.table, NotifyBreak.first, NotifyBreak.second, NotifyReader.name,
          ]
          stage.show()
          for line in NotifyTimeline(actors: actors, events: record.drawn).lines(stage) { stage.show("  " + line) }
          stage.say("┃ between a start and its end. ┊ a while in which nothing happened.", indent: 2)
        }
        let claims = Self.judge(record)
        stage.show()
        stage.say(stage.bold("\(mechanism)") + ", \(counted(record.rounds.count, "break")):")
        stage.show(claims, about: "\(mechanism)")
        found.claims += claims
        found.measurements.append(contentsOf: Self.measure(record))
      }
    }
    return found
  }

  private static func measure(_ record: NotifyBreak.Record) -> [DemoResult.Measurement] {
    let times = record.rounds.compactMap { round -> Double? in
      guard let start = round.events.last(where: { $0.actor == NotifyBreak.first && $0.kind == .start }),
        let end = round.events.last(where: { $0.actor == NotifyBreak.first && $0.kind == .end })
      else { return nil }
      return Double(end.time - start.time) / 1000
    }.sorted()
    return [
      .init(
        subject: "\(record.mechanism)", name: "from start to end, median", value: times.isEmpty ? 0 : times[times.count / 2],
        unit: "µs"),
      .init(subject: "\(record.mechanism)", name: "reads", value: Double(record.reader.reads), unit: "reads"),
    ]
  }

  static func judge(_ record: NotifyBreak.Record) -> [Claim] {
    let (rounds, reader) = (record.rounds, record.reader)
    let ordered = rounds.count { isOrdered($0.events) }
    let paired = rounds.count { isPaired($0) }
    let backedOff = rounds.count { $0.refusals > 0 && backsOff($0) }
    let refused = rounds.count { $0.refusals > 0 }
    let held = rounds.count { hasFrameAtStart($0) }
    let pins = rounds.flatMap(\.counts).map(\.counts.pins).max() ?? 0
    func claim(_ contract: String, _ text: String, _ holds: Bool, _ evidence: String) -> Claim {
      Claim(contract: contract, claim: "\(record.mechanism): \(text)", holds: holds, evidence: evidence)
    }
    func all(_ count: Int) -> Bool { !rounds.isEmpty && count == rounds.count }
    return [
      claim(
        "N5", "start, clear, invalidate, set, end, for every subscriber", all(ordered),
        "\(ordered) of \(counted(rounds.count, "break")) came in this order, by their times."),
      claim(
        "N4", "who would block is asked again, and nothing has changed until then", refused > 0 && backedOff == refused,
        "\(backedOff) of \(counted(refused, "break")) that were refused kept the old frame until all had agreed."),
      claim(
        "N9", "every start has its end, also when a later subscriber refuses", all(paired),
        "\(paired) of \(counted(rounds.count, "break")) have only pairs; what was refused has no end."),
      claim(
        "N9", "at the start the page has its frame and a reference, at the end another", all(held),
        "In \(held) of \(counted(rounds.count, "break")) the old frame had both mappings until it was replaced, and one at the end."
      ),
      claim(
        "N5", "the reader never sees new, then old, nor reads in between",
        reader.failure == nil && reader.backwards == 0 && reader.stale == 0 && all(reader.changes - 1),
        "\(reader.reads.grouped) reads saw \(reader.changes - 1) changes in \(counted(rounds.count, "break")), "
          + "\(reader.backwards) backwards, and \(reader.stale) ran while the page had no frame."
          + (reader.failure.map { " The reader failed: \($0)" } ?? "")),
      claim(
        "N12", "no pin was ever taken, and the page was translated all the same",
        all(rounds.count { $0.wasTranslated && !$0.counts.isEmpty }) && pins == 0 && all(rounds.count(where: \.hasNewFrame)),
        "\(counted(pins, "pin")) in \(counted(rounds.reduce(0) { $0 + $1.counts.count }, "callback")); "
          + "\(rounds.count(where: \.hasNewFrame)) of \(counted(rounds.count, "page")) moved while the reader had a translation."
      ),
      claim(
        "W5", "who shared the page has its old bytes", all(rounds.count(where: \.isKept)),
        "\(rounds.count(where: \.isKept)) of \(counted(rounds.count, "break")) left the other region as it was."),
    ]
  }

  private static func isOrdered(_ events: [NotifyEvent]) -> Bool {
    guard events.count(NotifyBreak.table, .cleared) == 1, events.count(NotifyBreak.table, .set) == 1 else { return false }
    for actor in [NotifyBreak.first, NotifyBreak.second] {
      guard events.count(actor, .invalidate) == 1 else { return false }
      let last = events.suffix(from: events.lastIndex { $0.actor == actor && $0.kind == .start } ?? events.endIndex)
      let wanted: [NotifyEvent.Kind] = [.start, .cleared, .invalidate, .set, .end]
      let found = last.filter { [actor, NotifyBreak.table].contains($0.actor) }.map(\.kind)
      guard found == wanted, zip(last, last.dropFirst()).allSatisfy({ $0.time <= $1.time }) else { return false }
    }
    return true
  }

  private static func isPaired(_ round: NotifyBreak.Round) -> Bool {
    let events = round.events
    let (first, second) = (NotifyBreak.first, NotifyBreak.second)
    return events.arePaired(for: first) && events.arePaired(for: second)
      && events.count(second, .refused) == round.refusals && events.count(second, .start) > 0
      // The mirror comes last, and refuses too where the reader keeps it waiting.
      && events.count(first, .start) == events.count(second, .start) + round.refusals
  }

  private static func backsOff(_ round: NotifyBreak.Round) -> Bool {
    guard let refused = round.events.lastIndex(where: { $0.kind == .refused }),
      let cleared = round.events.firstIndex(where: { $0.kind == .cleared })
    else { return false }
    return refused < cleared && round.counts.prefix { $0.kind != .invalidate }.allSatisfy { $0.counts.mappings == 2 }
  }

  private static func hasFrameAtStart(_ round: NotifyBreak.Round) -> Bool {
    let starts = round.counts.filter { $0.kind == .start || $0.kind == .invalidate }
    return !starts.isEmpty && starts.allSatisfy { $0.counts.mappings == 2 && $0.counts.references > 2 }
      && round.counts.last.map { $0.kind == .end && $0.counts.mappings == 1 } == true && round.hasNewFrame
  }
}
