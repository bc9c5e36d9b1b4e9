import PinKit

/// Snapshots: how long taking one stops a program, what its writers pay while one is held, and how fast it reaches a file.
enum SnapshotTopic: BenchTopic {
  static let name = "snapshot"

  static func check() throws {
    let features = try Userfaultfd.availableFeatures()
    guard features.contains([.pagefaultFlagWP, .wpUnpopulated, .sigbus]) else {
      throw BenchFault(description: "It needs Linux 6.4 or newer: its userfaultfd offers only \(features).")
    }
  }

  static let rows: [BenchRow] = contests + sizes

  /// What the pause, and the call, are drawn over.
  private static let sizes: [BenchRow] = [64, 256, 1_024, 2_048].flatMap { mebibytes in
    [("pause", Figure.pause), ("call", .call)].map { name, figure in
      BenchRow(
        "snapshot/\(name)-size-\(mebibytes)MiB", unit: "µs", goal: .reported, floor: "fork() of as much on 4 KiB pages",
        tries: 2
      ) { try first($0, figure, huge: false, pages: mebibytes << 8) }
    }
  }

  private static let contests: [BenchRow] = [
    BenchRow("snapshot/pause-thp", unit: "µs", goal: .ratio(0.1), floor: "fork() of 2 GiB on huge pages", tries: 2) {
      try first($0, .pause, huge: true)
    },
    BenchRow("snapshot/pause-4k", unit: "µs", goal: .ratio(0.1), floor: "fork() of 2 GiB on 4 KiB pages", tries: 2) {
      try first($0, .pause, huge: false)
    },
    BenchRow("snapshot/pause-second", unit: "µs", goal: .ratio(0.1), floor: "fork() of 2 GiB on 4 KiB pages", tries: 2) {
      try second($0, .pause)
    },
    // Who calls it waits for all of it, and others for the pause.
    BenchRow("snapshot/call-thp", unit: "µs", goal: .ratio(0.2), floor: "fork() of 2 GiB on huge pages", tries: 2) {
      try first($0, .call, huge: true)
    },
    BenchRow("snapshot/call-4k", unit: "µs", goal: .ratio(1.5), floor: "fork() of 2 GiB on 4 KiB pages", tries: 2) {
      try first($0, .call, huge: false)
    },
    BenchRow("snapshot/call-second", unit: "µs", goal: .ratio(0.5), floor: "fork() of 2 GiB on 4 KiB pages", tries: 2) {
      try second($0, .call)
    },
    BenchRow(
      "snapshot/stall-4k", unit: "µs", goal: .ratio(0.1), floor: "another thread beside fork() of 2 GiB on 4 KiB pages",
      tries: 2
    ) { try stall($0) },

    // Beyond what the same writes cost where nothing is protected.
    BenchRow("snapshot/writer", goal: .ratio(0.4), floor: "the kernel's copy after fork()") {
      try writer($0, .handlerThread)
    },
    BenchRow("snapshot/writer-in-place", goal: .ratio(0.4), floor: "the kernel's copy after fork()") {
      try writer($0, .inPlace)
    },

    // Nine tenths of the floor's rate.
    BenchRow("snapshot/stream", goal: .ratio(1 / 0.9), floor: "io_uring: 1 MiB writes, 8 in flight, fsync(2)") {
      try stream($0)
    },
  ]
}
