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
  /// A reader was turned away, and none has come in since. Only who gives way goes by it: seen late, it waits for nobody, or its time out.
  private let isAwaited = Atomic<Bool>(false)

  init(counters: FaultCounters) { self.counters = counters }
  deinit { futex.deallocate() }

  /// Proof that the shared side is held.
  struct SharedHold: ~Copyable {
    fileprivate let futex: FutexLock
    fileprivate init(_ futex: FutexLock) { self.futex = futex }
    deinit { WriteProtectLock.unlockShared(futex) }
  }

  @inline(__always) func lockShared(file: StaticString = #fileID, line: UInt = #line) -> SharedHold {
    if LockOrder.isOn {
      lockSharedChecked(LockPlace(file: file, line: line))
    } else if futex.lockShared() {
      counters.add(.sharedWaits)
    }
    return SharedHold(futex)
  }

  /// Whether somebody holds it exclusively, or waits to.
  @inline(__always) var hasWriter: Bool { futex.hasWriter }

  /// The same as ``withShared(file:line:_:)``, `nil` rather than wait.
  func withSharedIfFree<Result>(
    file: StaticString = #fileID, line: UInt = #line, _ body: (borrowing SharedHold) -> Result
  ) -> Result? {
    guard futex.tryLockShared() else { return nil }
    if LockOrder.isOn { noteShared(LockPlace(file: file, line: line)) }
    let hold = SharedHold(futex)
    let result = body(hold)
    _ = consume hold
    return result
  }

  /// Runs `body` with the shared side held. Signals are the caller's to block.
  func withShared<Result>(
    file: StaticString = #fileID, line: UInt = #line, _ body: (borrowing SharedHold) -> Result
  ) -> Result {
    let hold = lockShared(file: file, line: line)
    let result = body(hold)
    _ = consume hold
    return result
  }

  /// For a reader thread, which must not sleep on one region while others need it: `nil` while an exclusive operation runs. The
  /// operation's end reports the descriptor again, so that the messages are not forgotten.
  @inline(__always) func trySharedOrDefer(file: StaticString = #fileID, line: UInt = #line) -> SharedHold? {
    guard trySharedOrDefer() else { return nil }
    if LockOrder.isOn { noteShared(LockPlace(file: file, line: line)) }
    if isAwaited.load(ordering: .relaxed) { isAwaited.store(false, ordering: .relaxed) }
    return SharedHold(futex)
  }

  /// `nil` rather than wait: for who has a page locked, which comes after this in the order.
  func tryShared(file: StaticString = #fileID, line: UInt = #line) -> SharedHold? {
    guard futex.tryLockShared() else { return nil }
    if LockOrder.isOn { noteShared(LockPlace(file: file, line: line)) }
    return SharedHold(futex)
  }

  private func trySharedOrDefer() -> Bool {
    if futex.tryLockShared() { return true }
    isAwaited.store(true, ordering: .relaxed)
    deferred.store(true, ordering: .relaxed)
    // Two fences, one between store and load on each side: without them both may miss the other's store (it is seen on arm64), and
    // the messages would wait for ever.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    // The operation may have ended in between, before it could see the flag.
    if futex.tryLockShared() { return true }
    counters.add(.deferredBatches)
    return false
  }

  /// Lets go of a hold whose thread has ended with its stack.
  func abandonShared() { Self.unlockShared(futex) }

  @inline(__always) private static func unlockShared(_ futex: FutexLock) {
    futex.unlockShared()
    if LockOrder.isOn { LockOrder.released(key: futex.key) }
  }

  /// For who takes the exclusive side again and again: a reader that was turned away would find it taken each time. Waits until one has come
  /// in, at most so long; nothing is held.
  func giveWay(atMost nanoseconds: UInt64 = 1_000_000) {
    guard isAwaited.load(ordering: .acquiring) else { return }
    TestHooks.reach(.givingWay)
    let end = Kernel.now() + nanoseconds
    while isAwaited.load(ordering: .relaxed), Kernel.now() < end { Kernel.pause(nanoseconds: 10_000) }
    isAwaited.store(false, ordering: .relaxed)
  }

  /// Runs `body` alone, with signals blocked: a signal handler that touches managed memory would otherwise wait for this thread.
  ///
  /// `body` must not touch managed memory. `rearm` runs after the lock is released if a reader was turned away.
  func withExclusive<Result, Failure: Error>(
    rearm: () -> Void, file: StaticString = #fileID, line: UInt = #line, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try Kernel.withSignalsBlocked { () throws(Failure) in
      lockExclusive(LockPlace(file: file, line: line))
      return try holding(rearm, body)
    }
  }

  /// The same, `nil` rather than wait.
  func withExclusiveIfFree<Result, Failure: Error>(
    rearm: () -> Void, file: StaticString = #fileID, line: UInt = #line, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result? {
    try Kernel.withSignalsBlocked { () throws(Failure) in
      guard futex.tryLockExclusive() else { return nil }
      if LockOrder.isOn {
        LockOrder.acquired(
          .wrprotect, Self.exclusiveName, key: futex.key, place: LockPlace(file: file, line: line), isExclusive: true)
      }
      return try holding(rearm, body)
    }
  }

  private func holding<Result, Failure: Error>(
    _ rearm: () -> Void, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    TestHooks.exclusiveHeld()
    defer {
      futex.unlockExclusive()
      if LockOrder.isOn { LockOrder.released(key: futex.key) }
      atomicMemoryFence(ordering: .sequentiallyConsistent)
      if deferred.exchange(false, ordering: .relaxed) { rearm() }
    }
    return try body()
  }

  // MARK: The lock order

  private static var sharedName: StaticString { "wrprotect lock, shared" }
  private static var exclusiveName: StaticString { "wrprotect lock, exclusive" }

  @inline(never) private func lockSharedChecked(_ place: LockPlace) {
    LockOrder.willAcquire(.wrprotect, Self.sharedName, key: futex.key, place: place)
    if !futex.tryLockShared() {
      LockOrder.willWait(for: Self.sharedName, place: place)
      if futex.lockShared() { counters.add(.sharedWaits) }
      LockOrder.didWait()
    }
    noteShared(place)
  }

  @inline(never) private func noteShared(_ place: LockPlace) {
    LockOrder.acquired(.wrprotect, Self.sharedName, key: futex.key, place: place)
  }

  private func lockExclusive(_ place: LockPlace) {
    if LockOrder.isOn {
      LockOrder.willAcquire(.wrprotect, Self.exclusiveName, key: futex.key, place: place)
      LockOrder.willWait(for: Self.exclusiveName, place: place)
    }
    if futex.lockExclusive() { counters.add(.exclusiveWaits) }
    guard LockOrder.isOn else { return }
    LockOrder.didWait()
    LockOrder.acquired(.wrprotect, Self.exclusiveName, key: futex.key, place: place, isExclusive: true)
  }
}
