internal import Histogram
internal import Terminal

/// The numbers of a run.
struct SnapshotMeasurements {
  /// What a row of the table is about.
  struct Row {
    var subject: String
    var checkpoint: Checkpoint?
    var times: Histogram<UInt64>
  }

  private let rows: [Row]
  /// In seconds.
  private let quiet: Double

  /// - Parameter quiet: How long the writers were watched alone, in seconds.
  init(_ load: LedgerLoad, _ checkpoints: [Checkpoint], quiet: Double) {
    self.quiet = quiet
    rows =
      [Row(subject: "undisturbed", times: load.times(.undisturbed))]
      + checkpoints.map { Row(subject: $0.phase.subject, checkpoint: $0, times: load.times($0.phase)) }
  }

  var all: [DemoResult.Measurement] {
    rows.flatMap { row in
      var found: [DemoResult.Measurement] = []
      func add(_ name: String, _ value: Double, _ unit: String) {
        found.append(.init(subject: row.subject, name: name, value: value, unit: unit))
      }
      if let checkpoint = row.checkpoint {
        add("pause", Double(checkpoint.pause) / 1e6, "ms")
        add("image complete after", Double(checkpoint.duration) / 1e6, "ms")
        add("extra memory", Double(checkpoint.extraMemory) / 1_048_576, "MiB")
        if let copies = checkpoint.copies { add("captured", Double(copies) / 1_048_576, "MiB") }
        add("file", Double(checkpoint.fileSize) / 1_048_576, "MiB")
      }
      add("writes", rate(row), "writes/s")
      for (name, percentile) in Self.percentiles { add("write, \(name)", Self.time(row, percentile) / 1e3, "µs") }
      add("write, longest", Self.time(row, 100) / 1e3, "µs")
      add("in slow writes", slowed(row), "ms")
      return found
    }
  }

  /// For people.
  var lines: [String] {
    let heads = ["pause", "p50", "p99", "p99.9", "longest", "slowed", "writes", "memory", "file", "took"]
    return [Self.line("", heads)]
      + rows.map { row in
        let checkpoint = row.checkpoint
        func mebibytes(_ bytes: Int?) -> String { bytes.map { "\((Double($0) / 1_048_576).rounded(to: 0)) MiB" } ?? "" }
        return Self.line(
          row.subject,
          [checkpoint.map { $0.pause < 1_000_000 ? microseconds(Double($0.pause)) : milliseconds(Double($0.pause)) } ?? ""]
            + Self.percentiles.map { microseconds(Self.time(row, $0.percentile)) } + [
              milliseconds(Self.time(row, 100)), milliseconds(slowed(row) * 1e6), "\((rate(row) / 1e3).rounded(to: 0))k/s",
              mebibytes(checkpoint?.extraMemory),
              mebibytes(checkpoint?.fileSize), checkpoint.map { milliseconds(Double($0.duration)) } ?? "",
            ])
      }
  }

  private func rate(_ row: Row) -> Double {
    let seconds = row.checkpoint.map { Double($0.duration) / 1e9 } ?? quiet
    return Double(row.times.totalCount) / max(seconds, 1e-9)
  }

  /// In milliseconds: what writers spent in writes that waited for the copy of a page.
  private func slowed(_ row: Row) -> Double {
    row.times.recordedValues().reduce(0) { sum, found in
      LedgerWriter.slow.contains(found.value) ? sum + Double(found.value) * Double(found.count) / 1e6 : sum
    }
  }

  private static let percentiles: [(name: String, percentile: Double)] = [("p50", 50), ("p99", 99), ("p99.9", 99.9)]

  /// In nanoseconds; 0 if nothing was recorded.
  private static func time(_ row: Row, _ percentile: Double) -> Double {
    row.times.totalCount == 0 ? 0 : Double(row.times.valueAtPercentile(percentile))
  }

  private static func line(_ head: String, _ cells: [String]) -> String {
    let last = cells.lastIndex { !$0.isEmpty } ?? 0
    return head.padded(to: 18) + cells[...last].map { $0.aligned(to: 8) }.joined()
  }
}

extension LedgerPhase {
  /// In results.
  var subject: String {
    switch self {
    case .between, .undisturbed: "undisturbed"
    case .full: "PinKit, full"
    case .increment: "PinKit, increment"
    case .firstFork: "fork(), first"
    case .secondFork: "fork(), second"
    }
  }
}
