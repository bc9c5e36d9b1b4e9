internal import Metrics
internal import Synchronization

/// Hands the fault path's counters to swift-metrics, as differences since the last time, the quantiles of the fault latencies in between, and
/// what there is at this moment. Runs on the watchdog's thread.
struct MetricsPublisher {
  /// A counter of swift-metrics, made of the fault path's: what is taken off is counted among what is added.
  private struct Source {
    let label: String
    let dimension: (String, String)?
    let added: FaultCounters.Counter
    let taken: FaultCounters.Counter?
    /// The classes of pages that it can be counted for.
    let classes: [PageClass]

    init(
      _ label: String, _ added: FaultCounters.Counter, _ dimension: (String, String)? = nil,
      less taken: FaultCounters.Counter? = nil, only classes: [PageClass] = PageClass.allCases
    ) {
      self.label = label
      self.dimension = dimension
      self.added = added
      self.taken = taken
      self.classes = classes
    }

    func value(_ counters: FaultCounters) -> UInt64 {
      // What is taken off is counted later than what it is part of: read in the same order, the difference is never too large.
      let added = counters[added]
      let taken = taken.map { counters[$0] } ?? 0
      return added > taken ? added - taken : 0
    }
  }

  private static let sources: [Source] = [
    Source("pinkit_faults", .handlerThreadFaults, ("delivery", "handler-thread")),
    Source("pinkit_faults", .inPlaceFaults, ("delivery", "in-place")),
    Source("pinkit_faults", .mprotectFaults, ("delivery", "mprotect")),
    Source("pinkit_faults", .missingFaults, ("delivery", "missing"), only: [.file]),
    Source("pinkit_fault_pages", .openedPages, ("result", "opened"), less: .faultAroundPages),
    Source("pinkit_fault_pages", .faultAroundPages, ("result", "opened-around")),
    Source("pinkit_fault_pages", .alreadyOpen, ("result", "already-open")),
    Source("pinkit_fault_pages", .minorFaults, ("result", "mapped"), only: [.pool, .file]),
    Source("pinkit_fault_pages", .suppliedPages, ("result", "supplied"), only: [.file]),
    Source("pinkit_fault_pages", .refusedPages, ("result", "refused"), only: [.file]),
    Source("pinkit_fault_pages", .openedSeals, ("result", "unsealed"), only: [.pool]),
    Source("pinkit_fault_pages", .poisonedPages, ("result", "tampered"), only: [.pool]),
    Source("pinkit_fault_pages", .heldWrites, ("result", "held")),
    Source("pinkit_fault_pages", .unexplained, ("result", "unexplained")),
    Source("pinkit_write_decisions", .reuses, ("decision", "reuse"), only: [.pool, .file]),
    Source("pinkit_write_decisions", .copies, ("decision", "copy"), only: [.pool, .file]),
    Source("pinkit_spurious_copies", .spuriousCopies, only: [.pool, .file]),
    Source("pinkit_widened_openings", .widenedOpenings),
    Source("pinkit_retries", .retries),
    Source("pinkit_lock_waits", .sharedWaits, ("side", "shared")),
    Source("pinkit_lock_waits", .exclusiveWaits, ("side", "exclusive")),
    Source("pinkit_events", .removeEvents, ("event", "remove")),
    Source("pinkit_events", .unmapEvents, ("event", "unmap")),
    Source("pinkit_events", .remapEvents, ("event", "remap")),
    Source("pinkit_collections", .collections),
    Source("pinkit_collected_pages", .collectedPages),
    Source("pinkit_snapshots", .snapshots),
    Source("pinkit_captured_pages", .capturedPages),
    Source("pinkit_clones", .clones, only: [.pool, .file]),
    Source("pinkit_written_pages", .writtenPages, only: [.file]),
    Source("pinkit_reclaimed_pages", .reclaimedPages, only: [.file]),
    Source("pinkit_sealed_pages", .sealedPages, only: [.pool]),
  ]

  /// What is there at a moment; several spaces add up, so each says by how much it has changed.
  private struct Level {
    private let meter: Meter
    private var last = 0

    init(_ label: String, _ dimensions: [(String, String)], _ factory: any MetricsFactory) {
      meter = Meter(label: label, dimensions: dimensions, factory: factory)
    }

    mutating func set(_ value: Int) {
      if value > last {
        meter.increment(by: Double(value - last))
      } else if value < last {
        meter.decrement(by: Double(last - value))
      }
      last = value
    }
  }

  /// Of the snapshots of a class of pages.
  private struct SnapshotLevels {
    var open, keptBytes, keptPages, owedPages: Level

    init(_ name: String, _ factory: any MetricsFactory) {
      func level(_ label: String, _ more: (String, String)...) -> Level { Level(label, [("class", name)] + more, factory) }
      open = level("pinkit_open_snapshots")
      keptBytes = level("pinkit_snapshot_bytes")
      keptPages = level("pinkit_snapshot_pages", ("state", "kept"))
      owedPages = level("pinkit_snapshot_pages", ("state", "owed"))
    }

    mutating func set(_ snapshots: [SnapshotProgress]) {
      // Older ones find in it what they do not have themselves.
      let newest = snapshots.filter { $0.isNewest.load(ordering: .relaxed) }
      let kept = newest.reduce(0) { $0 + $1.pages.load(ordering: .relaxed) }
      open.set(snapshots.reduce(0) { $0 + ($1.isOpen.load(ordering: .relaxed) ? 1 : 0) })
      keptBytes.set(snapshots.reduce(0) { $0 + $1.bytes.load(ordering: .relaxed) })
      keptPages.set(kept)
      owedPages.set(max(0, newest.reduce(0) { $0 + $1.pageCount } - kept))
    }
  }

  private let counters: SpaceCounters
  /// By class and source.
  private var meters: [Metrics.Counter?] = []
  private var last: [UInt64]
  private var snapshotLevels: [SnapshotLevels]
  private var resident: Level
  private var lastLatencies = [UInt64](repeating: 0, count: FaultCounters.bucketCount)
  private let percentiles: [(quantile: Double, gauge: Gauge)]

  /// All code of the program's that is ever called from here but to record values.
  init(counters: SpaceCounters, factory: any MetricsFactory = MetricsSystem.factory) {
    self.counters = counters
    for pageClass in PageClass.allCases {
      for source in Self.sources {
        guard source.classes.contains(pageClass) else {
          meters.append(nil)
          continue
        }
        var dimensions = [("class", "\(pageClass)")]
        if let dimension = source.dimension { dimensions.append(dimension) }
        meters.append(Metrics.Counter(label: source.label, dimensions: dimensions, factory: factory))
      }
    }
    last = Array(repeating: 0, count: meters.count)
    snapshotLevels = PageClass.allCases.map { SnapshotLevels("\($0)", factory) }
    resident = Level("pinkit_pool_resident_bytes", [], factory)
    percentiles = [("50", 0.5), ("99", 0.99), ("99.9", 0.999)].map { name, quantile in
      (quantile, Gauge(label: "pinkit_fault_latency_seconds", dimensions: [("percentile", name)], factory: factory))
    }
  }

  /// Makes what swift-metrics and the runtime make when it is first used, while nobody can fork; calls no code of the program's.
  static func prepare(_ counters: SpaceCounters) {
    Uffd.withoutForks {
      _ = MetricsSystem.factory
      var rehearsal = MetricsPublisher(counters: counters, factory: NOOPMetricsHandler.instance)
      rehearsal.publish([SnapshotProgress(.pool, pageCount: 1)], residentBytes: 1)
    }
  }

  /// - Parameters:
  ///   - snapshots: Those whose copies there are.
  ///   - residentBytes: What the pool's frames take.
  mutating func publish(_ snapshots: [SnapshotProgress], residentBytes: Int) {
    for pageClass in PageClass.allCases {
      let counters = counters.of(pageClass)
      for source in Self.sources.indices {
        let index = pageClass.rawValue * Self.sources.count + source
        let value = Self.sources[source].value(counters)
        if value <= last[index] { continue }
        meters[index]?.increment(by: value - last[index])
        last[index] = value
      }
      snapshotLevels[pageClass.rawValue].set(snapshots.filter { $0.pageClass == pageClass })
    }
    resident.set(residentBytes)
    publishLatencies()
  }

  private mutating func publishLatencies() {
    let latencies = counters.latencies()
    let recent = LatencyHistogram(zip(latencies, lastLatencies).map { $0 > $1 ? $0 - $1 : 0 })
    lastLatencies = latencies
    guard recent.count > 0 else { return }
    for (quantile, gauge) in percentiles { gauge.record(Double(recent.value(at: quantile)) / 1e9) }
  }
}

extension AddressSpace {
  /// What each metric of PinKit counts, by its label: for systems that show a line of help beside a metric.
  public static let metricDescriptions = [
    "pinkit_faults": "Faults in managed memory, by how PinKit came to know of them.",
    "pinkit_fault_pages": "Pages that faults were about, by what became of them.",
    "pinkit_fault_latency_seconds": "From hearing of a fault to its page being open, of the faults since the last time.",
    "pinkit_write_decisions": "First writes to shared frames, by whether the frame was reused or copied.",
    "pinkit_spurious_copies": "Copies of frames that nobody else had any more.",
    "pinkit_widened_openings": "Faults that opened or copied more than they needed, to save mappings.",
    "pinkit_retries": "Operations that the kernel asked to try again.",
    "pinkit_lock_waits": "Waits for the wrprotect lock.",
    "pinkit_events": "What other code did to managed memory.",
    "pinkit_collections": "Dirty sets that trackers handed out.",
    "pinkit_collected_pages": "Pages in the dirty sets that trackers handed out.",
    "pinkit_snapshots": "Snapshots that were taken.",
    "pinkit_open_snapshots": "Snapshots that are open.",
    "pinkit_snapshot_bytes": "Memory that the copies of open snapshots take.",
    "pinkit_snapshot_pages":
      "Pages of the newest open snapshot of each region, by whether they were kept or are still owed.",
    "pinkit_captured_pages": "Pages whose bytes were kept for snapshots.",
    "pinkit_clones": "Clones that were made.",
    "pinkit_written_pages": "Pages that were written to stores.",
    "pinkit_reclaimed_pages": "Pages of stores that were dropped from memory.",
    "pinkit_sealed_pages": "Pages that were sealed.",
    "pinkit_pool_resident_bytes": "Memory that the frames of pools take, pages of stores among them.",
  ]
}
