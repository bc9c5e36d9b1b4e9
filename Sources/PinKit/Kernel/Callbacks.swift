internal import CUffd

extension Kernel {
  /// The number of an invalidation that this thread begins: no other has it.
  @inline(__always) static func nextOperation() -> UInt64 { cuffd_operation_next() }

  /// Enters a callback of a subscriber; false where too many are nested. Every `true` needs one ``leaveCallback()``.
  @inline(__always) static func enterCallback(_ operation: UInt64, of subscriber: UnsafeRawPointer) -> Bool {
    unsafe cuffd_notified_enter(operation, subscriber) != 0
  }
  @inline(__always) static func leaveCallback() { cuffd_notified_leave() }

  /// Whether this thread is inside a callback of a subscriber.
  @inline(__always) static var isInCallback: Bool { cuffd_notified_depth() != 0 }
  /// The invalidation that the innermost callback belongs to; 0 outside.
  static var callbackOperation: UInt64 { cuffd_notified_operation() }

  /// Calls `body` with each subscriber whose callback is running on this thread.
  static func forEachCallback(_ body: (UnsafeRawPointer) -> Void) {
    for depth in 0..<cuffd_notified_depth() { unsafe body(cuffd_notified_subscriber(depth)) }
  }

  /// On whose behalf this thread changes mappings, as the bits of an object's address; 0: nobody's in particular.
  static var invalidationOwner: UInt { UInt(cuffd_owner()) }
  static func withInvalidationOwner<Result, Failure: Error>(
    _ owner: UInt, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let before = cuffd_owner_replace(UInt64(owner))
    defer { _ = cuffd_owner_replace(before) }
    return try body()
  }
}
