import PinKit

/// Notifiers and mirrors: what being told costs those who change pages, and what reading beside them costs.
enum NotifyTopic: BenchTopic {
  static let name = "notify"

  static func check() throws {
    let features = try Userfaultfd.availableFeatures()
    guard features.contains([.pagefaultFlagWP, .wpUnpopulated, .sigbus]) else {
      throw BenchFault(description: "It needs Linux 6.4 or newer: its userfaultfd offers only \(features).")
    }
  }

  static let rows: [BenchRow] =
    [
      // Somebody subscribed once, so the way to subscribers is there, and leads nowhere.
      BenchRow("notify/none", unit: "ns/op", goal: .added(20), floor: "the same where nobody ever subscribed", tries: 40) {
        try operation($0, subscriptions: 0)
      }
    ]
    // One subscription overlaps the operation: its start, invalidate and end are called.
    + [(10, BenchGoal.reported), (100, .reported), (1_000, .reported), (10_000, .added(200)), (100_000, .reported)].map {
      count, goal in
      BenchRow(
        "notify/one-of-\(count)", unit: "ns/op", goal: goal, floor: "the same where nobody ever subscribed", tries: 40
      ) { try operation($0, subscriptions: count) }
    } + [
      BenchRow("direct/read", unit: "ns/read", goal: .added(5), floor: "a plain load", tries: 40) {
        try directRead($0)
      },
      BenchRow("direct/two-readers", unit: "ns/read", goal: .ratio(1.1), floor: "one reader of the window", tries: 40) {
        try twoReaders($0)
      },
      BenchRow(
        "mirror/translate-hit", unit: "ns/read", goal: .value(30), floor: "a load through a plain table", tries: 40
      ) { try translateHit($0) },
      BenchRow(
        "mirror/translate-miss", goal: .ratio(1.2), floor: "one thread: read(2), UFFDIO_WRITEPROTECT", tries: 3
      ) { try translateMiss($0, .handlerThread, .handlerThread) },
      BenchRow(
        "mirror/translate-miss-in-place", goal: .ratio(1.2), floor: "SIGBUS, UFFDIO_WRITEPROTECT in the writer", tries: 3
      ) { try translateMiss($0, .inPlace, .inPlace) },
    ]
}
