/// An entry of the descriptor table, as it lies in memory. The corresponding C type is `struct vring_desc`.
public struct VirtqueueDescriptor: BitwiseCopyable, Hashable, Sendable {
  /// An offset into the buffers' memory, in bytes.
  public var address: UInt64
  /// In bytes.
  public var length: UInt32
  public var flags: Flags
  /// The entry where the chain goes on, if ``Flags/next`` says that it does.
  public var next: UInt16

  @inlinable public init(address: UInt64, length: UInt32, flags: Flags = [], next: UInt16 = 0) {
    self.address = address
    self.length = length
    self.flags = flags
    self.next = next
  }

  /// Bits that virtio does not define are ignored, as by the kernel's own devices.
  public struct Flags: OptionSet, BitwiseCopyable, Hashable, Sendable {
    public let rawValue: UInt16
    @inlinable public init(rawValue: UInt16) { self.rawValue = rawValue }
    /// The chain goes on. The corresponding C constant is `VRING_DESC_F_NEXT`.
    @inlinable public static var next: Flags { Flags(rawValue: 1) }
    /// The device writes the buffer instead of reading it. The corresponding C constant is `VRING_DESC_F_WRITE`.
    @inlinable public static var write: Flags { Flags(rawValue: 2) }
    /// The buffer is a table of descriptors; refused. The corresponding C constant is `VRING_DESC_F_INDIRECT`.
    @inlinable public static var indirect: Flags { Flags(rawValue: 4) }
  }
}

/// An entry of the used ring, as it lies in memory. The corresponding C type is `struct vring_used_elem`.
public struct VirtqueueUsedElement: BitwiseCopyable, Hashable, Sendable {
  /// The head of the chain.
  public var id: UInt32
  /// How many bytes the device has written to its buffers.
  public var length: UInt32

  @inlinable public init(id: UInt32, length: UInt32) {
    self.id = id
    self.length = length
  }
}

/// A part of a chain that a driver posts.
public struct VirtqueueBuffer: Hashable, Sendable {
  /// Into the buffers' memory, in bytes.
  public var offset: Int
  /// In bytes.
  public var length: Int
  /// Whether the device writes it, instead of reading it.
  public var isWritable: Bool

  /// A buffer that the device reads.
  @inlinable public static func readable(at offset: Int, _ length: Int) -> VirtqueueBuffer {
    VirtqueueBuffer(offset: offset, length: length, isWritable: false)
  }
  /// A buffer that the device writes. In a chain, these come last.
  @inlinable public static func writable(at offset: Int, _ length: Int) -> VirtqueueBuffer {
    VirtqueueBuffer(offset: offset, length: length, isWritable: true)
  }

  @inlinable init(offset: Int, length: Int, isWritable: Bool) {
    self.offset = offset
    self.length = length
    self.isWritable = isWritable
  }
}

/// A chain that the device has used.
public struct VirtqueueCompletion: Hashable, Sendable {
  /// What ``VirtqueueDriver/post(_:)`` returned for it.
  public var id: UInt16
  /// How many bytes the device has written, from the first writable buffer on.
  public var length: Int

  @inlinable init(id: UInt16, length: Int) {
    self.id = id
    self.length = length
  }
}
