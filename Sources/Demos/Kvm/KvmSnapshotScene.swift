internal import Guest
internal import PinKit
internal import Terminal

/// Snapshots while the guest writes without a pause: each has to be one moment, and to stay it.
struct KvmSnapshotScene: DemoScene {
  let title = "snapshots of a guest that does not pause"
  private let snapshotCount = 30

  /// What came of one kind of memory.
  struct Outcome {
    var subject: String
    /// What was wrong with each snapshot, looked at twice.
    var flaws: [String?] = []
    var stores = UInt64(0)
    /// How many stores the guest had made at the first and at the last snapshot.
    var span = UInt64(0)
    /// What was wrong with the memory itself in the end.
    var finalFlaw: String?
    /// In nanoseconds, the longest of them.
    var pause = UInt64(0)
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "The guest numbers its stores and makes them in an order that is known, over all pages, around and around. So a snapshot can be checked "
        + "to the last word: its largest number says how far the guest had come, and with that what every other word must be."
    )
    var found = DemoFindings()
    for (backing, name, kind) in [
      (Backing.anonymous(hugePages: .never), "anonymous", Capabilities.MemoryKind.anonymous), (.pool, "pool", .pool),
    ] {
      for mechanism in KvmMemory.synchronous {
        let subject = "\(name) memory, \(mechanism.rawValue)"
        found.attempt("guest: \(subject)", needing: [.mechanism(mechanism, kind)], on: stage) { found in
          var outcome = Outcome(subject: subject)
          try KvmMemory.with(backing, pages: 260) { try play($0, mechanism, &outcome) }
          let claims = Self.judge(outcome)
          stage.show(claims)
          found.claims += claims
          found.measurements.append(
            .init(subject: outcome.subject, name: "longest pause", value: Double(outcome.pause) / 1e3, unit: "µs"))
        }
      }
    }
    return found
  }

  private func play(_ region: Region, _ mechanism: WriteTracking.Mechanism, _ outcome: inout Outcome) throws {
    let guest = GuestThread(in: region)
    guest.start()
    defer { try? guest.stop() }
    KvmWait.until { guest.progress > 0 || guest.failure != nil }
    var last: (snapshot: Snapshot, from: UInt64, to: UInt64)?
    let first = guest.progress
    for _ in 0..<snapshotCount {
      let before = try guest.walk.words(in: region).max() ?? 0
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      let after = try guest.walk.words(in: region).max() ?? 0
      outcome.pause = max(outcome.pause, snapshot.pause)
      for (snapshot, from, to) in [(snapshot, before, after)] + (last.map { [$0] } ?? []) {
        outcome.flaws.append(guest.walk.flaw(in: try guest.walk.words(of: snapshot), from: from, to: to))
      }
      last = (snapshot, before, after)
      let goal = guest.progress + 1
      KvmWait.until { guest.progress >= goal || guest.failure != nil }
    }
    try guest.stop()
    outcome.stores = guest.progress
    outcome.span = guest.progress - first
    outcome.finalFlaw = guest.walk.flaw(in: try guest.walk.words(in: region), from: guest.progress, to: guest.horizon)
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    let wrong = outcome.flaws.compactMap(\.self)
    return [
      Claim(
        contract: "W6", claim: "guest, \(outcome.subject): every snapshot is one moment, and stays it",
        holds: !outcome.flaws.isEmpty && wrong.isEmpty && outcome.span > 0,
        evidence:
          "\(wrong.count) of \(outcome.flaws.count) looks found another word; \(outcome.span.grouped) stores beside them."
          + (wrong.first.map { " First: \($0)." } ?? "")),
      Claim(
        contract: "W5", claim: "guest, \(outcome.subject): no store of the guest was lost",
        holds: outcome.finalFlaw == nil && outcome.stores > 0,
        evidence: outcome.finalFlaw ?? "\(outcome.stores.grouped) stores, and every word is the last that went there."),
    ]
  }
}
