internal import Synchronization

/// The wrprotect lock of a region (W1): fault handling holds it shared, whatever changes protection holds it exclusively.
///
/// Until a write-protect operation returns, the content of its pages may still change through stale TLB entries. Because the
/// operation holds this lock exclusively from before the first ioctl until after the last, no fault handler reads, copies or
/// decides on a page whose protection is in flight. The user never has to synchronize the two.
///
/// Fair both ways (``FutexLock``), async-signal-safe, and below it only page claims may be waited for.
@safe struct WriteProtectLock: ~Copyable, Sendable {
  private let futex = FutexLock()
  private let counters: FaultCounters
  /// A reader found the lock taken and left a batch unread: whoever unlocks has the descriptor reported again.
  private let deferred = Atomic<Bool>(false)

  init(counters: FaultCounters) { self.counters = counters }
  deinit { futex.deallocate() }

  /// Proof that the shared side is held.
  struct SharedHold: ~Copyable {
    fileprivate let futex: FutexLock
    fileprivate init(_ futex: FutexLock) { self.futex = futex }
    deinit { futex.unlockShared() }
  }

  @inline(__always) func lockShared() -> SharedHold {
    if futex.lockShared() { counters.add(.sharedWaits) }
    return SharedHold(futex)
  }

  /// Runs `body` with the shared side held. Signals are the caller's to block.
  func withShared<Result>(_ body: (borrowing SharedHold) -> Result) -> Result {
    let hold = lockShared()
    let result = body(hold)
    _ = consume hold
    return result
  }

  /// For a reader thread, which must not sleep on one region while others need it: `nil` while an exclusive operation runs. The
  /// operation's end reports the descriptor again, so that the messages are not forgotten.
  @inline(__always) func trySharedOrDefer() -> SharedHold? {
    if futex.tryLockShared() { return SharedHold(futex) }
    deferred.store(true, ordering: .relaxed)
    // Two fences, one between store and load on each side: without them both may miss the other's store (it is seen on arm64), and
    // the messages would wait for ever.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    // The operation may have ended in between, before it could see the flag.
    if futex.tryLockShared() { return SharedHold(futex) }
    counters.add(.deferredBatches)
    return nil
  }

  /// Lets go of a hold whose thread has ended with its stack.
  func abandonShared() { futex.unlockShared() }

  /// Runs `body` alone, with signals blocked: a signal handler that touches managed memory would otherwise wait for this thread.
  ///
  /// `body` must not touch managed memory. `rearm` runs after the lock is released if a reader was turned away.
  func withExclusive<Result, Failure: Error>(
    rearm: () -> Void, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try Kernel.withSignalsBlocked { () throws(Failure) in
      if futex.lockExclusive() { counters.add(.exclusiveWaits) }
      return try holding(rearm, body)
    }
  }

  /// The same, `nil` rather than wait.
  func withExclusiveIfFree<Result, Failure: Error>(
    rearm: () -> Void, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result? {
    try Kernel.withSignalsBlocked { () throws(Failure) in
      guard futex.tryLockExclusive() else { return nil }
      return try holding(rearm, body)
    }
  }

  private func holding<Result, Failure: Error>(
    _ rearm: () -> Void, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    TestHooks.exclusiveHeld()
    defer {
      futex.unlockExclusive()
      atomicMemoryFence(ordering: .sequentiallyConsistent)
      if deferred.exchange(false, ordering: .relaxed) { rearm() }
    }
    return try body()
  }
}
