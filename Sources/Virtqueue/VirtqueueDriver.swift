public import PinKit

/// The side of a queue that posts buffers and takes them back.
///
/// What it must remember of a chain it keeps to itself, and never reads back from memory that the device can write. One thread at a time
/// uses it.
///
/// Ring memory that is protected for the moment is no error: the call returns `nil`, changes nothing, and is made again.
public struct VirtqueueDriver<Rings: RingMemory>: ~Copyable {
  public let layout: VirtqueueLayout
  @usableFromInline let rings: Rings
  /// The entry after this one, in its chain or in the list of free ones.
  @usableFromInline var following: [UInt16]
  /// Of chains that are outstanding, by their heads; else no descriptors.
  @usableFromInline var chains: [Chain]
  @usableFromInline var firstFree: UInt16 = 0
  @usableFromInline var nextAvailable: UInt16 = 0
  @usableFromInline var nextUsed: UInt16 = 0
  /// The used index as it was seen last.
  @usableFromInline var seenUsed: UInt16 = 0
  @usableFromInline var free: Int
  @usableFromInline var posted = 0
  @usableFromInline var broken: VirtqueueViolation?
  /// Entries of the table that no chain has.
  public var freeDescriptors: Int { free }
  /// Chains that the device has.
  public var outstanding: Int { posted }
  /// Calls that found ring memory protected.
  public private(set) var retries = 0
  /// How the device broke the protocol, if it did; from then on every call throws it.
  public var violation: VirtqueueViolation? { broken }

  @usableFromInline struct Chain {
    @usableFromInline var descriptors = 0
    @usableFromInline var writableBytes = 0
    @usableFromInline init() {}
  }

  /// Begins a queue: clears the rings' flags and indices. The device begins afterwards.
  ///
  /// - Throws: ``VirtqueueError/memory(_:)``, also where the rings are protected.
  public init(_ layout: VirtqueueLayout, _ rings: Rings) throws(VirtqueueError) {
    self.layout = layout
    self.rings = rings
    following = (0..<layout.size).map { UInt16(truncatingIfNeeded: $0 + 1) }
    chains = Array(repeating: Chain(), count: layout.size)
    free = layout.size
    do throws(PinError) {
      try rings.withWindow { window throws(PinError) in
        try window.store(UInt16(0), at: layout.available.lowerBound)
        try window.store(UInt16(0), at: layout.used.lowerBound)
        try window.storeReleasing(0, at: layout.usedIndex)
        try window.storeReleasing(0, at: layout.availableIndex)
      }
    } catch { throw .memory(error) }
  }

  /// Makes a chain of buffers available to the device. Does not block.
  ///
  /// - Parameter buffers: At least one; those that the device reads come first.
  /// - Returns: The number that its completion will have; `nil` where the table has too few free entries now, or ring memory is protected.
  /// - Throws: ``VirtqueueError``: `.invalidChain`, `.needsReset`, `.memory`.
  @inlinable public mutating func post(
    _ buffers: some RandomAccessCollection<VirtqueueBuffer>
  ) throws(VirtqueueError) -> UInt16? {
    if let violation = broken { throw .needsReset(violation) }
    let writableBytes = try Self.check(buffers, size: layout.size)
    guard buffers.count <= free else { return nil }
    let head = firstFree
    var last = head
    let (layout, number, following) = (layout, nextAvailable, following)
    do throws(PinError) {
      try rings.withWindow { window throws(PinError) in
        var index = head
        var left = buffers.count
        for buffer in buffers {
          left -= 1
          var flags: VirtqueueDescriptor.Flags = buffer.isWritable ? .write : []
          if left > 0 { flags.insert(.next) }
          let next = following[Int(index)]
          let descriptor = VirtqueueDescriptor(
            address: UInt64(buffer.offset), length: UInt32(buffer.length), flags: flags, next: left > 0 ? next : 0)
          try window.store(descriptor, at: layout.descriptor(index))
          last = index
          index = next
        }
        try window.store(head, at: layout.availableEntry(number))
        // Whoever sees the index sees the entry and the descriptors.
        try window.storeReleasing(number &+ 1, at: layout.availableIndex)
      }
    } catch {
      try tryAgain(error)
      return nil
    }
    // Nothing was available before: what comes now cannot fail.
    nextAvailable &+= 1
    firstFree = following[Int(last)]
    free -= buffers.count
    posted += 1
    chains[Int(head)].descriptors = buffers.count
    chains[Int(head)].writableBytes = writableBytes
    return head
  }

  /// How many bytes the device may write.
  @inlinable static func check(
    _ buffers: some RandomAccessCollection<VirtqueueBuffer>, size: Int
  ) throws(VirtqueueError) -> Int {
    guard !buffers.isEmpty, buffers.count <= size else {
      throw .invalidChain("It has \(buffers.count) buffers, the queue \(size) entries.")
    }
    var writable = 0
    var total = 0
    for buffer in buffers {
      guard buffer.offset >= 0, buffer.length >= 0, buffer.length <= Int(UInt32.max) else {
        throw .invalidChain("A buffer of \(buffer.length) bytes at offset \(buffer.offset) cannot be described.")
      }
      guard buffer.isWritable || writable == 0 else { throw .invalidChain("Buffers that the device reads come first.") }
      total += buffer.length
      if buffer.isWritable { writable += buffer.length }
    }
    guard total <= 1 << 32 else { throw .invalidChain("It has \(total) bytes, more than 2^32.") }
    return writable
  }

  /// Throws what trying again does not help against.
  @usableFromInline mutating func tryAgain(_ error: PinError) throws(VirtqueueError) {
    guard error.code == .accessDenied else { throw .memory(error) }
    retries += 1
  }
}
