/// A reference that is not counted, for calls that many threads make at once: a count is one word that all of them would write. Whoever has it sees
/// to it that the object is there.
@safe struct Uncounted<Object: AnyObject & Sendable>: @unchecked Sendable {  // the object is
  private let reference: Unmanaged<Object>

  init(_ object: Object) { unsafe reference = .passUnretained(object) }

  /// `nil` for 0.
  @inline(__always) init?(address: UInt) {
    guard let pointer = unsafe UnsafeRawPointer(bitPattern: address) else { return nil }
    unsafe reference = .fromOpaque(pointer)
  }

  @inline(__always) var address: UInt { unsafe UInt(bitPattern: reference.toOpaque()) }

  @inline(__always) func with<Result>(_ body: (Object) -> Result) -> Result {
    unsafe reference._withUnsafeGuaranteedRef { body($0) }
  }
}
