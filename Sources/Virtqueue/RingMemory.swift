public import PinKit

/// How one side of a queue reaches the memory that its rings lie in.
///
/// A queue is generic over it, so that the loop over a batch is compiled for the one way that is used.
public protocol RingMemory: Sendable {
  associatedtype Window: RingWindow

  /// Calls `body` with the memory: once for a batch, however many fields the batch has. The window ends with the call and must not be kept.
  ///
  /// - Throws: What `body` throws; ``PinKit/PinError`` of its own before `body` runs. `.accessDenied` means that the memory is protected
  ///   for now: the queue tries again later.
  func withWindow<Result>(
    _ body: (Window) throws(PinError) -> Result
  ) throws(PinError) -> Result
}

/// Memory for the duration of a batch. Offsets are in bytes, counted as in ``VirtqueueLayout``.
public protocol RingWindow {
  /// Loads a value that the other side does not write now.
  func load<Value: BitwiseCopyable>(at offset: Int, as type: Value.Type) throws(PinError) -> Value
  /// Stores a value that the other side does not look at yet.
  func store<Value: BitwiseCopyable>(_ value: Value, at offset: Int) throws(PinError)
  /// Loads an index: what the other side wrote before it stored that is seen by every later access.
  func loadAcquiring(at offset: Int) throws(PinError) -> UInt16
  /// Stores an index, after everything that was written before.
  func storeReleasing(_ value: UInt16, at offset: Int) throws(PinError)
}

/// The memory that a queue's buffers lie in. A descriptor's address is an offset into it, in bytes.
public protocol BufferMemory: Sendable {
  /// How many bytes there are.
  var byteCount: Int { get }
  /// Copies bytes out until `target` is full.
  func copy(fromByteOffset offset: Int, into target: UnsafeMutableRawBufferPointer) throws(PinError)
  /// Copies bytes in.
  func copy(_ source: UnsafeRawBufferPointer, toByteOffset offset: Int) throws(PinError)
}

extension Region: BufferMemory {
  /// How many bytes the region has.
  public var byteCount: Int { addresses.count }
}

/// A region by its checked accessors: what `copy_from_user` and `copy_to_user` are to a device in the kernel.
///
/// Every field is checked against the region's bounds and its pages' rights, at a price of two atomic operations and more. The memory may be
/// protected, cloned, snapshotted or unmapped at any moment.
public struct CheckedRingMemory: RingMemory, RingWindow {
  public let region: Region

  public init(_ region: Region) { self.region = region }

  @inlinable public func withWindow<Result>(
    _ body: (CheckedRingMemory) throws(PinError) -> Result
  ) throws(PinError) -> Result {
    try body(self)
  }

  @inlinable public func load<Value: BitwiseCopyable>(at offset: Int, as type: Value.Type) throws(PinError) -> Value {
    try region.load(fromByteOffset: offset, as: type)
  }
  @inlinable public func store<Value: BitwiseCopyable>(_ value: Value, at offset: Int) throws(PinError) {
    try region.store(value, toByteOffset: offset)
  }
  @inlinable public func loadAcquiring(at offset: Int) throws(PinError) -> UInt16 {
    try region.loadAcquiring(fromByteOffset: offset)
  }
  @inlinable public func storeReleasing(_ value: UInt16, at offset: Int) throws(PinError) {
    try region.storeReleasing(value, toByteOffset: offset)
  }
}
