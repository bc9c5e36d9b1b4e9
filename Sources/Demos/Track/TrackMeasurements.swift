internal import PinKit
internal import Terminal

/// The numbers of one mechanism's turn.
struct TrackMeasurements {
  let all: [DemoResult.Measurement]
  /// For people.
  let lines: [String]

  init(_ session: TrackSession, baseline: Double) {
    let subject = session.mechanism.rawValue
    let statistics = session.statistics
    let faults = statistics.handlerThreadFaults + statistics.inPlaceFaults + statistics.mprotectFaults
    let latency = statistics.faultLatency
    let dirty = median(session.frames.map { Double($0.dirty.count) })
    let indexing = median(session.indexingTimes)
    let collecting = median(session.collectTimes)
    let every = session.indexingTimes.reduce(0, +) / Double(max(1, 2 * session.frames.count))
    let ratio = indexing / baseline
    func measure(_ name: String, _ value: Double, _ unit: String) -> DemoResult.Measurement {
      .init(subject: subject, name: name, value: value, unit: unit)
    }
    all =
      [
        measure("intervals", Double(session.frames.count), "intervals"), measure("rounds", Double(session.rounds), "rounds"),
        measure("dirty per interval, median", dirty, "pages"), measure("collect, median", collecting / 1e3, "µs"),
        measure("faults", Double(faults), "faults"), measure("round", indexing / 1e6, "ms"),
        measure("round against untracked", ratio, "times"),
      ]
      + (latency.count == 0
        ? []
        : [
          measure("fault latency, p50", Double(latency.p50) / 1e3, "µs"),
          measure("fault latency, p99", Double(latency.p99) / 1e3, "µs"),
        ])
    lines = [
      "intervals   \(session.frames.count.grouped) in \(session.rounds) rounds; median \(Int(dirty).grouped) dirty pages; two collections in each, every \(milliseconds(every)), which take \(microseconds(collecting))",
      latency.count == 0
        ? "faults      none: the kernel notes writes by itself"
        : "faults      \(faults.grouped); p50 \(microseconds(Double(latency.p50))), p99 \(microseconds(Double(latency.p99)))",
      "indexing    \(milliseconds(indexing)) a round, \(milliseconds(baseline)) untracked: \(ratio.rounded(to: 2)) times (time for the checks left out)",
    ]
  }
}

/// 0 of nothing.
func median(_ values: [Double]) -> Double { values.isEmpty ? 0 : values.sorted()[values.count / 2] }
func milliseconds(_ nanoseconds: Double) -> String { "\((nanoseconds / 1e6).rounded(to: nanoseconds < 1e8 ? 1 : 0)) ms" }
func microseconds(_ nanoseconds: Double) -> String { "\((nanoseconds / 1e3).rounded(to: nanoseconds < 1e5 ? 1 : 0)) µs" }
