internal import Synchronization

/// The first write to a page since it was last protected.
public struct FirstWrite: Sendable, Hashable {
  /// The page that was written; where `vm.max_map_count` forces more pages open than that, the first of ``opened``.
  public let page: Int
  /// All pages that this call is about; more than `page` only with fault-around, or at that limit.
  public let opened: Range<Int>
}

/// The first-write callbacks of a region's trackers, immutable: replaced as a whole under the exclusive wrprotect lock.
final class FirstWriteCallbacks: Sendable {
  typealias Callback = @Sendable (FirstWrite) -> Void
  private let callbacks: [Callback]

  init(_ callbacks: [Callback]) { self.callbacks = callbacks }

  var isEmpty: Bool { callbacks.isEmpty }

  @inline(__always) static func call(_ domain: borrowing FaultDomain, page: Int, opening: Range<Int>) {
    let raw = domain.callbacks.load(ordering: .acquiring)
    if raw != 0 { call(raw, FirstWrite(page: page, opened: opening)) }
  }

  /// The object outlives the call: whoever replaces it holds the lock exclusively, and this thread holds it shared.
  @inline(never) private static func call(_ raw: UInt, _ write: FirstWrite) {
    LockOrder.enterCallback(.firstWrite, at: LockPlace())
    defer { LockOrder.leaveCallback() }
    let object = unsafe Unmanaged<FirstWriteCallbacks>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!)
    unsafe object._withUnsafeGuaranteedRef { for callback in $0.callbacks { callback(write) } }
  }
}
