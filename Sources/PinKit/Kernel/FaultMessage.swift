internal import CUffd

/// One message of a userfaultfd, decoded once.
public enum FaultMessage: Sendable, Hashable {
  /// A thread waits at `address`.
  case pageFault(address: UInt, flags: PageFaultFlags, thread: UInt32)
  /// The process forked; `descriptor` is the child's userfaultfd and is the reader's to close.
  case fork(descriptor: CInt)
  /// `mremap` moved registered memory.
  case remap(from: UInt, to: UInt, length: Int)
  /// Pages are about to be discarded (`MADV_DONTNEED`, a hole punch): the message comes *before* the pages go.
  case remove(AddressRange)
  /// Memory was unmapped: the message comes *after*.
  case unmap(AddressRange)
  /// An event that this version does not know. It is counted, and everything else goes on.
  case unknown(event: UInt8)

  /// The corresponding C constants are `UFFD_PAGEFAULT_FLAG_…`.
  public struct PageFaultFlags: OptionSet, Sendable, Hashable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static let write = PageFaultFlags(rawValue: cuffd_pagefault_write)
    public static let writeProtect = PageFaultFlags(rawValue: cuffd_pagefault_wp)
    public static let minor = PageFaultFlags(rawValue: cuffd_pagefault_minor)
  }

  init(_ raw: cuffd_message) {
    switch raw.event {
    case cuffd_event_pagefault:
      self = .pageFault(
        address: UInt(raw.b), flags: PageFaultFlags(rawValue: raw.a), thread: UInt32(truncatingIfNeeded: raw.c))
    case cuffd_event_fork: self = .fork(descriptor: CInt(truncatingIfNeeded: raw.a))
    case cuffd_event_remap: self = .remap(from: UInt(raw.a), to: UInt(raw.b), length: Int(raw.c))
    case cuffd_event_remove: self = .remove(AddressRange(start: UInt(raw.a), end: max(UInt(raw.a), UInt(raw.b))))
    case cuffd_event_unmap: self = .unmap(AddressRange(start: UInt(raw.a), end: max(UInt(raw.a), UInt(raw.b))))
    default: self = .unknown(event: raw.event)
    }
  }
}

/// A preallocated batch of messages; reading one allocates nothing.
@safe struct FaultBatch: ~Copyable {
  static let capacity = 64
  private let buffer: UnsafeMutablePointer<cuffd_message>
  private(set) var count = 0

  init() { unsafe buffer = .allocate(capacity: Self.capacity) }
  deinit { unsafe buffer.deallocate() }

  subscript(index: Int) -> FaultMessage {
    precondition(index < count)
    return unsafe FaultMessage(buffer[index])
  }

  /// Reads what is queued without blocking. Returns the errno, or 0; ``count`` is 0 when nothing was queued.
  mutating func read(from descriptor: CInt) -> CInt {
    let result = unsafe cuffd_read(descriptor, buffer, CInt(Self.capacity))
    count = max(0, Int(result))
    return result < 0 ? -result : 0
  }
}
