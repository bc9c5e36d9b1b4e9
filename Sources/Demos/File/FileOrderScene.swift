internal import PinKit
internal import Synchronization

/// The order in which a page becomes writable (N3) and clean (N2).
struct FileOrderScene: DemoScene {
  let title = "how a page becomes writable, and clean again"
  let needs: [DemoNeed] = [.stores]
  static let (program, store, subscriber) = ("program", "store", "subscriber")

  /// What a look at the page from inside the store saw.
  struct Look: Sendable, Hashable {
    var isLocked = false
    var isDirty = false
    var isUnderWriteback = false
    /// By the kernel's own page table.
    var isWritable = false
  }

  struct Outcome: Sendable {
    var events: [NotifyEvent] = []
    /// When the store was asked, after the write, while the bytes were written, and after the flush.
    var asked: [Look] = []
    var written = Look()
    var writing: [Look] = []
    var flushed = Look()
    /// What the file had of the page then.
    var fileRound: Int?
    /// What a writer got whom the store refused, and what the page was then.
    var refusal: PinError.Code?
    var refused = Look()
    var roundAfterRefusal: Int?
    var row: [FileHeatMap.Row] = []
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "The first write to a page is not the program's business alone: the store must agree, as it may have no room. So: the page is "
        + "locked, the store asked, the page made writable, unlocked. And before it is written back its subscribers are told, and "
        + "it is protected. What the store sees when it is called:")
    let outcome = try Self.perform()
    stage.show()
    let timeline = NotifyTimeline(actors: [Self.program, Self.store, Self.subscriber], events: outcome.events)
    for line in timeline.lines(stage) { stage.show("  " + line) }
    stage.draw(FileHeatMap(rows: outcome.row).lines(stage), indent: 2)
    return DemoFindings(showing: Self.judge(outcome), on: stage)
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "N3",
        claim: "the store is asked about a page that is locked, clean and read-only, and then it is writable",
        holds: outcome.asked == [Look(isLocked: true)]
          && outcome.written == Look(isDirty: true, isWritable: true),
        evidence:
          "Asked \(outcome.asked.count) times: \(outcome.asked.map(\.text).joined(separator: ", ")). After the write: "
          + "\(outcome.written.text)."),
      Claim(
        contract: "N3", claim: "where the store refuses, the writer gets its error and the page stays clean and read-only",
        holds: outcome.refusal == .outOfSpace && outcome.refused == Look() && outcome.roundAfterRefusal == 1,
        evidence:
          "The writer got \(outcome.refusal.map { "\"\($0)\"" } ?? "no error"); the page is \(outcome.refused.text), and "
          + "holds round \(outcome.roundAfterRefusal.map { "\($0)" } ?? "none")."),
      Claim(
        contract: "N2", claim: "subscribers are told before a page is protected and written back",
        holds: outcome.writing == [Look(isUnderWriteback: true)] && isToldFirst(outcome.events),
        evidence: "While its bytes were written the page was \(outcome.writing.map(\.text).joined(separator: ", "))."),
      Claim(
        contract: "W5", claim: "after the flush the file has what was written, and the page is clean",
        holds: outcome.flushed == Look() && outcome.fileRound == 2,
        evidence: "The page is \(outcome.flushed.text); the file has round \(outcome.fileRound.map { "\($0)" } ?? "none")."),
    ]
  }

  /// Start and end of the subscriber, and only then the store's write and its flush.
  private static func isToldFirst(_ events: [NotifyEvent]) -> Bool {
    guard let start = events.firstIndex(where: { $0.kind == .start }),
      let end = events.firstIndex(where: { $0.kind == .end }),
      let write = events.firstIndex(where: { $0.actor == store && $0.text == "write" }),
      let flush = events.firstIndex(where: { $0.actor == store && $0.text == "make durable" })
    else { return false }
    return start < end && end < write && write < flush && events.arePaired(for: subscriber)
  }
}
