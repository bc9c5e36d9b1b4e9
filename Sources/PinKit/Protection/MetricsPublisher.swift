internal import Metrics

/// Hands the fault path's counters to swift-metrics, as differences since the last time, and the quantiles of the fault latencies in
/// between. Runs on the watchdog's thread.
struct MetricsPublisher {
  private let counters: FaultCounters
  private var last: [FaultCounters.Counter: UInt64] = [:]
  private var lastLatencies = [UInt64](repeating: 0, count: FaultCounters.bucketCount)
  private let quantiles: [(quantile: Double, gauge: Gauge)]
  private let meters: [FaultCounters.Counter: Metrics.Counter]

  /// The counters that are published: label and dimension.
  private static let labels: [(FaultCounters.Counter, String, [(String, String)])] = [
    (.handlerThreadFaults, "pinkit_faults", [("delivery", "handler-thread")]),
    (.inPlaceFaults, "pinkit_faults", [("delivery", "in-place")]),
    (.mprotectFaults, "pinkit_faults", [("delivery", "mprotect")]),
    (.openedPages, "pinkit_opened_pages", []),
    (.faultAroundPages, "pinkit_fault_around_pages", []),
    (.retries, "pinkit_retries", []),
    (.sharedWaits, "pinkit_lock_waits", [("side", "shared")]),
    (.exclusiveWaits, "pinkit_lock_waits", [("side", "exclusive")]),
    (.removeEvents, "pinkit_events", [("event", "remove")]),
    (.unmapEvents, "pinkit_events", [("event", "unmap")]),
    (.remapEvents, "pinkit_events", [("event", "remap")]),
    (.widenedOpenings, "pinkit_widened_openings", []),
    (.minorFaults, "pinkit_minor_faults", []),
    (.reuses, "pinkit_write_decisions", [("decision", "reuse")]),
    (.copies, "pinkit_write_decisions", [("decision", "copy")]),
    (.spuriousCopies, "pinkit_spurious_copies", []),
    (.capturedPages, "pinkit_captured_pages", []),
    (.heldWrites, "pinkit_held_writes", []),
    (.missingFaults, "pinkit_missing_faults", []),
    (.suppliedPages, "pinkit_supplied_pages", []),
    (.refusedPages, "pinkit_refused_pages", []),
    (.writtenPages, "pinkit_written_pages", []),
    (.reclaimedPages, "pinkit_reclaimed_pages", []),
    (.sealedPages, "pinkit_sealed_pages", []),
    (.openedSeals, "pinkit_opened_seals", []),
    (.poisonedPages, "pinkit_poisoned_pages", []),
    (.collections, "pinkit_collections", []),
    (.snapshots, "pinkit_snapshots", []),
    (.clones, "pinkit_clones", []),
    (.unexplained, "pinkit_unexplained_faults", []),
  ]

  init(counters: FaultCounters, factory: any MetricsFactory = MetricsSystem.factory) {
    self.counters = counters
    meters = Dictionary(
      uniqueKeysWithValues: Self.labels.map {
        ($0.0, Metrics.Counter(label: $0.1, dimensions: $0.2, factory: factory))
      })
    quantiles = [0.5, 0.99, 0.999].map {
      ($0, Gauge(label: "pinkit_fault_latency_nanoseconds", dimensions: [("quantile", "\($0)")], factory: factory))
    }
  }

  /// Makes what swift-metrics and the runtime make when it is first used, while nobody can fork; calls no code of the program's.
  static func prepare(_ counters: FaultCounters) {
    Uffd.withoutForks {
      _ = MetricsSystem.factory
      var rehearsal = MetricsPublisher(counters: counters, factory: NOOPMetricsHandler.instance)
      rehearsal.publish()
    }
  }

  mutating func publish() {
    for (counter, meter) in meters {
      let value = counters[counter]
      let before = last.updateValue(value, forKey: counter) ?? 0
      if value > before { meter.increment(by: value - before) }
    }
    let latencies = counters.latencies()
    let recent = LatencyHistogram(zip(latencies, lastLatencies).map { $0 > $1 ? $0 - $1 : 0 })
    lastLatencies = latencies
    guard recent.count > 0 else { return }
    for (quantile, gauge) in quantiles { gauge.record(Int64(recent.value(at: quantile))) }
  }
}
