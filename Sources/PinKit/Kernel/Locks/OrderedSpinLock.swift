internal import Synchronization

/// A subscriber's spin lock, for use inside `invalidateRange`, with its place in the lock order checked (``LockRank/subscriberSpin``,
/// N4, N8).
///
/// Taking it spins, and does nothing else: no system call, no allocation. It may be taken in a signal handler, provided that whoever holds
/// it outside has that signal blocked. Keep what runs under it short. It must not block, and must not touch memory that PinKit manages,
/// since a fault takes locks that come before this one.
@safe public struct OrderedSpinLock<Value>: ~Copyable, @unchecked Sendable {  // the value is touched under the lock only
  private struct State: ~Copyable { let isHeld = Atomic<Bool>(false) }
  private let state: UnsafeMutablePointer<State>
  private let value: UnsafeMutablePointer<Value>
  private let name: StaticString

  /// - Parameters:
  ///   - value: What the lock guards.
  ///   - name: A literal, for reports.
  public init(_ value: sending Value, name: StaticString = "subscriber's spin lock") {
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: State())
    unsafe self.value = .allocate(capacity: 1)
    unsafe self.value.initialize(to: value)
    self.name = name
  }

  deinit {
    unsafe value.deinitialize(count: 1)
    unsafe value.deallocate()
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
  }

  /// Runs `body` with the lock held, spinning until nobody else has it. `file` and `line` are for reports.
  public borrowing func withLock<Result, Failure: Error>(
    file: StaticString = #fileID, line: UInt = #line, _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    let place = LockPlace(file: file, line: line)
    if LockOrder.isOn { LockOrder.willAcquire(.subscriberSpin, name, key: key, place: place) }
    while !tryLock() { Kernel.relax() }
    return try run(place, body)
  }

  /// Runs `body` with the lock held if nobody has it; `nil` otherwise. `file` and `line` are for reports.
  public borrowing func withLockIfAvailable<Result, Failure: Error>(
    file: StaticString = #fileID, line: UInt = #line, _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result? {
    guard tryLock() else { return nil }
    return try run(LockPlace(file: file, line: line), body)
  }

  private var key: UInt { UInt(bitPattern: unsafe state) }

  @inline(__always) private borrowing func tryLock() -> Bool {
    // Looking first keeps those who spin from taking the line away from whoever lets go. The exchange decides; a lock that was let go of just now
    // may count as held.
    unsafe !state.pointee.isHeld.load(ordering: .relaxed) && !state.pointee.isHeld.exchange(true, ordering: .acquiring)
  }

  @inline(__always) private borrowing func run<Result, Failure: Error>(
    _ place: LockPlace, _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    if LockOrder.isOn { LockOrder.acquired(.subscriberSpin, name, key: key, place: place) }
    defer {
      unsafe state.pointee.isHeld.store(false, ordering: .releasing)
      if LockOrder.isOn { LockOrder.released(key: key) }
    }
    return try unsafe body(&value.pointee)
  }
}
