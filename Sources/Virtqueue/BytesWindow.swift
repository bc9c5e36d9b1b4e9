public import PinKit
public import Synchronization

/// Bytes that are known to be accessible for as long as the window exists: what a ``RingMemory`` over a mapping hands out.
///
/// Takes no lock and makes no system call.
@safe public struct BytesWindow: RingWindow {
  @usableFromInline let bytes: UnsafeMutableRawBufferPointer
  @usableFromInline let base: Int

  /// - Parameters:
  ///   - bytes: Valid, on an even address, and written by nobody but the two sides of the queue, until the window ends.
  ///   - base: The offset of the first byte, as ``VirtqueueLayout`` counts.
  @unsafe @inlinable public init(_ bytes: UnsafeMutableRawBufferPointer, at base: Int = 0) {
    unsafe self.bytes = bytes
    self.base = base
  }

  @inlinable @inline(__always) func place(_ offset: Int, _ count: Int) -> UnsafeMutableRawPointer {
    // A layout that was made for another memory is the program's error; garbage in the rings cannot come here.
    let room = unsafe bytes.count - count
    precondition(offset >= base && offset - base <= room, "the ring does not lie in the window")
    return unsafe bytes.baseAddress.unsafelyUnwrapped + (offset - base)
  }

  @inlinable public func load<Value: BitwiseCopyable>(at offset: Int, as type: Value.Type) throws(PinError) -> Value {
    unsafe place(offset, MemoryLayout<Value>.size).loadUnaligned(as: type)
  }
  @inlinable public func store<Value: BitwiseCopyable>(_ value: Value, at offset: Int) throws(PinError) {
    unsafe place(offset, MemoryLayout<Value>.size).storeBytes(of: value, as: Value.self)
  }
  @inlinable public func loadAcquiring(at offset: Int) throws(PinError) -> UInt16 {
    unsafe place(offset, 2).assumingMemoryBound(to: Atomic<UInt16>.self).pointee.load(ordering: .acquiring)
  }
  @inlinable public func storeReleasing(_ value: UInt16, at offset: Int) throws(PinError) {
    unsafe place(offset, 2).assumingMemoryBound(to: Atomic<UInt16>.self).pointee.store(value, ordering: .releasing)
  }
}
