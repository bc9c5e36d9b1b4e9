internal import Logging
internal import Synchronization

/// The thread that notices what fault handlers cannot say themselves (K3): a reader that ended, a reader that is stuck, a closed
/// descriptor, a refusal of the kernel. It logs the cause and applies the failure policy. It is also the only thread of the
/// fault handler that may allocate.
///
/// What is made when it is first used, by the runtime or by other packages, is made before the thread starts, by whoever starts it: a child of
/// `fork()` would find it half made for ever, if the fork had caught this thread at it. Whoever starts it holds locks of the space, so code of
/// the program's does not run there: the handles of swift-metrics are made in the thread's first turn, while nobody can fork.
@safe final class Watchdog: @unchecked Sendable {  // its variables belong to its thread, once it runs
  private let handler: FaultHandler
  private var metrics: MetricsPublisher?
  private var published = Kernel.now()
  private var watches: [ObjectIdentifier: WorkWatch] = [:]
  /// In milliseconds.
  private static let interval: CInt = 200

  private init(_ handler: FaultHandler) {
    self.handler = handler
    MetricsPublisher.prepare(handler.counters)
  }

  static func start(for handler: FaultHandler) throws(PinError) -> KernelThread {
    let watchdog = Watchdog(handler)
    TestHooks.prepare()
    // There is nothing to be found yet, and the code has run once.
    watchdog.look()
    return try watchdog.begin()
  }

  private func begin() throws(PinError) -> KernelThread {
    let retained = unsafe Unmanaged.passRetained(self)
    do throws(PinError) {
      return try unsafe Self.begin(retained.toOpaque())
    } catch {
      unsafe retained.release()
      throw error
    }
  }

  private static func begin(_ context: UnsafeMutableRawPointer) throws(PinError) -> KernelThread {
    try unsafe KernelThread(
      name: "pinkit-watchdog", context: context,
      body: { unsafe Unmanaged<Watchdog>.fromOpaque($0!).takeUnretainedValue().run() },
      onExit: { unsafe Unmanaged<Watchdog>.fromOpaque($0!).takeRetainedValue().end() })
  }

  /// Runs on the thread as it ends, however it does.
  private func end() {
    if handler.isStopping.load(ordering: .acquiring) { return }
    handler.replaceWatchdog { () throws(PinError) in try begin() }
  }

  private func run() {
    handler.joinEndedWatchdogs()
    if metrics == nil, handler.metricsInterval > 0 {
      Uffd.withoutForks { metrics = MetricsPublisher(counters: handler.counters) }
    }
    // What was counted since the last time is not lost when the space closes.
    defer { metrics?.publish([], residentBytes: 0) }
    while !handler.isStopping.load(ordering: .acquiring) {
      if handler.alarm.wait(milliseconds: Self.interval) { handler.alarm.drain() }
      if handler.isStopping.load(ordering: .acquiring) { return }
      look()
    }
  }

  private func look() {
    // First: what follows may wait for readers that wait for another one.
    handler.crew.grow(for: handler)
    LockOrder.deliver()
    handler.runErrands()
    handler.runTicks()
    handler.pool?.giveBackDead()
    handler.repairDescriptors()
    checkReaders()
    if metrics != nil, Double(Kernel.now() - published) > handler.metricsInterval * 1e9 {
      published = Kernel.now()
      publish()
    }
    for protection in handler.protections {
      protection.repairDescriptors()
      protection.restoreHugeMappings()
      if let failure = protection.unreportedFailure {
        apply(failure, to: protection)
        // Not before: what the log calls may end this thread.
        protection.noteReported()
      }
    }
  }

  private func publish() { metrics?.publish(handler.snapshots.all, residentBytes: handler.pool?.residentBytes ?? 0) }

  private func checkReaders() {
    TestHooks.reach(.watching)
    if handler.drops.hasEnded.exchange(false, ordering: .sequentiallyConsistent) {
      handler.logger.critical(
        "the thread that takes pages out of mappings ended unexpectedly; whoever needs it starts another one")
    }
    let readers = handler.crew.all
    let patience = Kernel.nanoseconds(handler.patience)
    for reader in readers {
      if reader.hasEnded.load(ordering: .acquiring) {
        let slot = reader.busySlot.exchange(-1, ordering: .relaxed)
        if slot >= 0 { failAll(servedBy: slot - 1, others: readers) }
        continue
      }
      let since = reader.busySince.load(ordering: .relaxed)
      if watches[ObjectIdentifier(reader), default: WorkWatch()].isOverdue(since, patience: patience) {
        handler.logger.critical(
          "a fault reader has worked on one batch for \(handler.patience) s; a first-write callback may be blocked, and threads that fault wait for it"
        )
      }
    }
  }

  /// A reader is gone: the region it was serving cannot be trusted, and with the last reader no region can. One that ends meanwhile is found at
  /// the next look.
  private func failAll(servedBy slot: Int, others: [FaultReader]) {
    let alive = others.contains { !$0.hasEnded.load(ordering: .acquiring) }
    for protection in handler.protections where !alive || protection.slotIndex == slot {
      protection.fail(.readerDied)
    }
    handler.logger.critical("a fault reader ended unexpectedly; \(alive ? "others go on" : "none is left")")
  }

  private func apply(_ failure: PinError, to protection: RegionProtection) {
    handler.logger.critical("\(failure)")
    if handler.policy == .terminate { Kernel.die("PinKit: \(failure)") }
    protection.releaseAfterFailure()
  }
}
