internal import CUffd

/// A phase-fair reader-writer lock on futexes, in memory that the caller owns; async-signal-safe.
///
/// A waiting writer keeps new readers out, and a leaving writer lets all readers in that came meanwhile: neither starves.
@safe struct FutexLock: @unchecked Sendable {  // the C side touches it only through atomics
  private let raw: UnsafeMutablePointer<cuffd_wplock>
  /// Tells the lock from others.
  var key: UInt { UInt(bitPattern: unsafe raw) }

  init() {
    unsafe raw = .allocate(capacity: 1)
    unsafe raw.initialize(to: cuffd_wplock(state: 0, writers: 0, reserved: 0))
  }

  /// Whoever calls this knows that nobody uses the lock any more.
  func deallocate() { unsafe raw.deallocate() }

  /// Returns whether it had to wait.
  @inline(__always) func lockShared() -> Bool {
    var waits: UInt64 = 0
    unsafe cuffd_wplock_lock_shared(raw, &waits)
    return waits > 0
  }
  @inline(__always) func tryLockShared() -> Bool { unsafe cuffd_wplock_try_shared(raw) != 0 }
  @inline(__always) func unlockShared() { unsafe cuffd_wplock_unlock_shared(raw) }

  func lockExclusive() -> Bool {
    var waits: UInt64 = 0
    unsafe cuffd_wplock_lock_exclusive(raw, &waits)
    return waits > 0
  }
  /// False rather than wait.
  func tryLockExclusive() -> Bool { unsafe cuffd_wplock_try_exclusive(raw) != 0 }
  func unlockExclusive() { unsafe cuffd_wplock_unlock_exclusive(raw) }

  /// Whether somebody holds it exclusively, or waits to.
  @inline(__always) var hasWriter: Bool { unsafe cuffd_wplock_has_writer(raw) != 0 }
  /// How many readers wait for a writer to leave.
  var queuedReaders: Int { Int(unsafe cuffd_wplock_queued(raw)) }
}
