internal import Histogram

extension AddressSpace {
  /// What the fault path has done since the space was made.
  public struct Statistics: Sendable, Hashable, Codable {
    /// Write faults that reader threads resolved, one for each page of a batch.
    public var handlerThreadFaults: UInt64
    /// Write faults that the faulting thread resolved after SIGBUS.
    public var inPlaceFaults: UInt64
    /// Write faults that the faulting thread resolved after SIGSEGV.
    public var mprotectFaults: UInt64
    /// Pages that faults have opened, neighbours included.
    public var openedPages: UInt64
    /// Of those, the ones that were opened for a neighbour's sake.
    public var faultAroundPages: UInt64
    /// The window of each protected region's latest fault, in pages; the largest.
    public var faultAroundWindow: Int
    /// Faults whose page another fault had opened already.
    public var alreadyOpen: UInt64
    /// Operations that the kernel asked to try again (EAGAIN).
    public var retries: UInt64
    /// Threads woken without opening their page: they try again.
    public var wakes: UInt64
    /// Faults in managed memory that PinKit could not explain and left to the program's handler.
    public var unexplained: UInt64
    /// How often a fault waited for the wrprotect lock, and how often an exclusive operation did.
    public var sharedLockWaits: UInt64
    public var exclusiveLockWaits: UInt64
    /// Batches that a reader left for later because an exclusive operation was running.
    public var deferredBatches: UInt64
    /// Reads of a userfaultfd that returned something, and the messages they returned.
    public var batches: UInt64
    public var messages: UInt64
    /// Events by kind; `unknownEvents` are those this version does not know.
    public var removeEvents: UInt64
    public var unmapEvents: UInt64
    public var remapEvents: UInt64
    public var unknownEvents: UInt64
    /// Faults that opened or copied more than they needed, to save mappings: at `vm.max_map_count`, or where a budget of mappings was spent.
    public var widenedOpenings: UInt64
    /// Faults on pages that were there and not mapped.
    public var minorFaults: UInt64
    /// First writes to shared frames that could use the frame as it was, that copied it, and those among the latter that need not
    /// have.
    public var reuses: UInt64
    public var copies: UInt64
    public var spuriousCopies: UInt64
    /// Pages whose bytes were kept for snapshots, pages of zeros included.
    public var capturedPages: UInt64
    /// Writes that had to wait because a snapshot had reached its capture limit.
    public var heldWrites: UInt64
    /// Faults on pages that had to come from a store, and the pages that they brought in.
    public var missingFaults: UInt64
    public var suppliedPages: UInt64
    /// Pages that a store could not read, or would not let be written; pages that were written to stores; and those that were dropped.
    public var refusedPages: UInt64
    public var writtenPages: UInt64
    public var reclaimedPages: UInt64
    /// Pages that were sealed and opened again, and those that would not open because they had been tampered with.
    public var sealedPages: UInt64
    public var openedSeals: UInt64
    public var poisonedPages: UInt64
    /// Sets that trackers have handed out, snapshots and clones that were taken.
    public var collections: UInt64
    public var snapshots: UInt64
    public var clones: UInt64
    /// From reading a fault (or entering the signal handler) to its page being open, in nanoseconds.
    public var faultLatency: LatencySummary
  }

  /// A distribution of times in nanoseconds, exact to an eighth.
  public struct LatencySummary: Sendable, Hashable, Codable {
    public var count: UInt64
    public var p50: UInt64
    public var p90: UInt64
    public var p99: UInt64
    public var p999: UInt64
    public var maximum: UInt64
  }

  /// A snapshot of the counters; cheap, lock-free, and safe beside any load. Counters that change meanwhile may be caught at
  /// slightly different moments.
  public var statistics: Statistics {
    let protections = services.find(FaultHandler.self)?.protections ?? []
    return Statistics(
      handlerThreadFaults: counters[.handlerThreadFaults], inPlaceFaults: counters[.inPlaceFaults],
      mprotectFaults: counters[.mprotectFaults], openedPages: counters[.openedPages],
      faultAroundPages: counters[.faultAroundPages],
      faultAroundWindow: protections.map { unsafe $0.domain.pointee.faultAround.currentWindow }.max() ?? 1,
      alreadyOpen: counters[.alreadyOpen], retries: counters[.retries], wakes: counters[.wakes],
      unexplained: counters[.unexplained], sharedLockWaits: counters[.sharedWaits],
      exclusiveLockWaits: counters[.exclusiveWaits], deferredBatches: counters[.deferredBatches],
      batches: counters[.batches], messages: counters[.messages], removeEvents: counters[.removeEvents],
      unmapEvents: counters[.unmapEvents], remapEvents: counters[.remapEvents],
      unknownEvents: counters[.unknownEvents], widenedOpenings: counters[.widenedOpenings],
      minorFaults: counters[.minorFaults], reuses: counters[.reuses], copies: counters[.copies],
      spuriousCopies: counters[.spuriousCopies], capturedPages: counters[.capturedPages],
      heldWrites: counters[.heldWrites],
      missingFaults: counters[.missingFaults], suppliedPages: counters[.suppliedPages],
      refusedPages: counters[.refusedPages], writtenPages: counters[.writtenPages],
      reclaimedPages: counters[.reclaimedPages], sealedPages: counters[.sealedPages],
      openedSeals: counters[.openedSeals], poisonedPages: counters[.poisonedPages],
      collections: counters[.collections], snapshots: counters[.snapshots], clones: counters[.clones],
      faultLatency: latencySummary())
  }

  private func latencySummary() -> LatencySummary {
    let histogram = LatencyHistogram(counters.latencies())
    return LatencySummary(
      count: histogram.count, p50: histogram.value(at: 0.5), p90: histogram.value(at: 0.9),
      p99: histogram.value(at: 0.99), p999: histogram.value(at: 0.999), maximum: histogram.value(at: 1))
  }
}

/// The fault path's latency buckets as a distribution.
struct LatencyHistogram {
  private var histogram = Histogram<UInt64>(highestTrackableValue: 1 << 42, numberOfSignificantValueDigits: .two)
  private(set) var count: UInt64 = 0

  /// `buckets` as ``FaultCounters/latencies()`` returns them.
  init(_ buckets: [UInt64]) {
    for (bucket, times) in buckets.enumerated() where times > 0 {
      histogram.record(FaultCounters.middle(of: bucket), count: times)
      count += times
    }
  }

  /// In nanoseconds; 0 if nothing was recorded.
  func value(at quantile: Double) -> UInt64 { count == 0 ? 0 : histogram.valueAtPercentile(quantile * 100) }
}
