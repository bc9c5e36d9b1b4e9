/// Where the three parts of a split virtqueue lie in a memory, as offsets in bytes: virtio 1.x, section 2.7.
///
/// All fields are little-endian, as are the processors that PinKit runs on.
public struct VirtqueueLayout: Hashable, Sendable {
  /// Entries of the queue: a power of two, at most ``maximumSize``.
  public let size: Int
  /// The descriptor table: 16 bytes an entry.
  public let descriptors: Range<Int>
  /// The ring that the driver writes: flags, index, and two bytes an entry.
  public let available: Range<Int>
  /// The ring that the device writes: flags, index, and eight bytes an entry.
  public let used: Range<Int>

  /// What the 16-bit indices allow.
  public static let maximumSize = 32_768

  /// The parts one after the other from `offset` on, each on a cache line of its own.
  ///
  /// - Parameters:
  ///   - size: Entries: a power of two.
  ///   - offset: In bytes; a multiple of 64.
  ///   - byteCount: Of the memory that the queue lies in.
  /// - Throws: ``VirtqueueError/invalidLayout(_:)``.
  public init(size: Int, at offset: Int = 0, in byteCount: Int) throws(VirtqueueError) {
    try Self.check(size: size)
    guard offset >= 0, offset.isMultiple(of: Self.line), offset <= byteCount, offset <= .max - Self.byteCount(size: size)
    else {
      throw .invalidLayout("Offset \(offset) is not a multiple of \(Self.line) within \(byteCount) bytes.")
    }
    let available = Self.aligned(offset + Self.descriptorBytes(size))
    let used = Self.aligned(available + Self.availableBytes(size))
    try self.init(size: size, descriptorsAt: offset, availableAt: available, usedAt: used, in: byteCount)
  }

  /// The parts where a driver has put them.
  ///
  /// - Throws: ``VirtqueueError/invalidLayout(_:)`` where the size is no power of two, or a part is misaligned, outside the memory,
  ///   or overlaps another.
  public init(
    size: Int, descriptorsAt descriptors: Int, availableAt available: Int, usedAt used: Int, in byteCount: Int
  ) throws(VirtqueueError) {
    try Self.check(size: size)
    self.size = size
    self.descriptors = try Self.part(
      "descriptor table", at: descriptors, bytes: Self.descriptorBytes(size), alignment: 16, in: byteCount)
    self.available = try Self.part(
      "available ring", at: available, bytes: Self.availableBytes(size), alignment: 2, in: byteCount)
    self.used = try Self.part("used ring", at: used, bytes: Self.usedBytes(size), alignment: 4, in: byteCount)
    if self.descriptors.overlaps(self.available) || self.descriptors.overlaps(self.used)
      || self.available.overlaps(self.used)
    {
      throw .invalidLayout("The parts at \(descriptors), \(available) and \(used) overlap.")
    }
  }

  /// How many bytes ``init(size:at:in:)`` needs for a queue of `size` entries; `Int.max` for more than ``maximumSize``, which no memory has
  /// room for.
  public static func byteCount(size: Int) -> Int {
    if size > maximumSize { return .max }
    let size = max(0, size)
    return aligned(aligned(descriptorBytes(size)) + availableBytes(size)) + usedBytes(size)
  }

  /// From the first byte of any part to the end of the last one.
  public var bytes: Range<Int> {
    min(
      descriptors.lowerBound, available.lowerBound, used.lowerBound)..<max(
        descriptors.upperBound, available.upperBound, used.upperBound)
  }

  // MARK: Fields

  /// Where descriptor `index` lies; `index` is below ``size``.
  @inlinable @inline(__always) public func descriptor(_ index: UInt16) -> Int {
    descriptors.lowerBound + 16 * (Int(index) & (size - 1))
  }
  /// Where the driver says how many chains it has made available, ever.
  @inlinable @inline(__always) public var availableIndex: Int { available.lowerBound + 2 }
  /// Where the head of the chain with number `count`, counted from 0 for ever, lies.
  @inlinable @inline(__always) public func availableEntry(_ count: UInt16) -> Int {
    available.lowerBound + 4 + 2 * (Int(count) & (size - 1))
  }
  /// Where the device says how many chains it has used, ever.
  @inlinable @inline(__always) public var usedIndex: Int { used.lowerBound + 2 }
  /// Where the used element with number `count` lies.
  @inlinable @inline(__always) public func usedEntry(_ count: UInt16) -> Int {
    used.lowerBound + 4 + 8 * (Int(count) & (size - 1))
  }

  // MARK: Sizes

  private static let line = 64
  private static func aligned(_ offset: Int) -> Int { (offset + line - 1) & ~(line - 1) }
  private static func descriptorBytes(_ size: Int) -> Int { 16 * size }
  // With the two bytes at the end for an event index, which is not used, but is part of the ring.
  private static func availableBytes(_ size: Int) -> Int { 6 + 2 * size }
  private static func usedBytes(_ size: Int) -> Int { 6 + 8 * size }

  private static func check(size: Int) throws(VirtqueueError) {
    guard size > 0, size <= maximumSize, size & (size - 1) == 0 else {
      throw .invalidLayout("A queue of \(size) entries: it must be a power of two, at most \(maximumSize).")
    }
  }

  private static func part(
    _ name: String, at offset: Int, bytes: Int, alignment: Int, in byteCount: Int
  ) throws(VirtqueueError) -> Range<Int> {
    guard offset >= 0, offset.isMultiple(of: alignment) else {
      throw .invalidLayout("The \(name) at \(offset) is not on a boundary of \(alignment) bytes.")
    }
    guard bytes <= byteCount, offset <= byteCount - bytes else {
      throw .invalidLayout("The \(name) of \(bytes) bytes at \(offset) does not lie within \(byteCount) bytes.")
    }
    return offset..<offset + bytes
  }
}
