internal import Synchronization

/// A subscriber's own mutex, such as the queue mutex of a device, with its place in the lock order checked
/// (``LockRank/subscriberMutex``, N8).
///
/// It is a `Mutex` of the Synchronization module that ``LockOrder`` knows of. Memory that PinKit manages may be touched while it is held:
/// faults come after it in the order. So a callback of PinKit must not wait for it. The owner may be in a fault, and the fault may wait for
/// what the caller of the callback holds. ``withLockIfAvailable(file:line:_:)`` is for callbacks.
///
/// A thread has at most one at a time, unless it only tries the others.
@safe public struct OrderedMutex<Value: ~Copyable>: ~Copyable, @unchecked Sendable {  // the owner is atomics
  private let mutex: Mutex<Value>
  private let owner: MutexOwner.Pointer
  private let name: StaticString

  /// - Parameters:
  ///   - value: What the mutex guards.
  ///   - name: A literal, for reports.
  public init(_ value: consuming sending Value, name: StaticString = "subscriber's mutex") {
    mutex = Mutex(value)
    unsafe owner = MutexOwner.make()
    self.name = name
  }

  deinit {
    unsafe owner.deinitialize(count: 1)
    unsafe owner.deallocate()
  }

  /// Runs `body` with the mutex held, waiting for it. Not for callbacks of PinKit, nor for signal handlers. `file` and `line` are for
  /// reports.
  public borrowing func withLock<Result: ~Copyable, Failure: Error>(
    file: StaticString = #fileID, line: UInt = #line,
    _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result {
    let place = LockPlace(file: file, line: line)
    if LockOrder.isOn {
      LockOrder.willAcquire(.subscriberMutex, name, key: key, owner: unsafe owner.pointee.state, place: place)
    }
    defer { LockOrder.deliverIfIdle() }
    return try mutex.withLock { value throws(Failure) in
      begin(place)
      defer { end() }
      return try body(&value)
    }
  }

  /// Runs `body` with the mutex held if nobody has it; `nil` otherwise. Never waits: what a callback of PinKit does, which
  /// returns `.wouldBlock` for `nil`. `file` and `line` are for reports.
  public borrowing func withLockIfAvailable<Result: ~Copyable, Failure: Error>(
    file: StaticString = #fileID, line: UInt = #line,
    _ body: (inout sending Value) throws(Failure) -> sending Result
  ) throws(Failure) -> sending Result? {
    let place = LockPlace(file: file, line: line)
    defer { LockOrder.deliverIfIdle() }
    return try mutex.withLockIfAvailable { value throws(Failure) in
      begin(place)
      defer { end() }
      return try body(&value)
    }
  }

  private var key: UInt { UInt(bitPattern: unsafe owner) }

  @inline(__always) private borrowing func begin(_ place: LockPlace) {
    guard LockOrder.isOn else { return }
    unsafe owner.pointee.begin(place)
    LockOrder.acquired(.subscriberMutex, name, key: key, place: place)
  }

  @inline(__always) private borrowing func end() {
    guard LockOrder.isOn else { return }
    LockOrder.released(key: key)
    unsafe owner.pointee.end()
  }
}
