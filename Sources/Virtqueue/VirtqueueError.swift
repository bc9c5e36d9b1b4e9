public import PinKit

/// What a side of a queue throws.
public enum VirtqueueError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The parts of the queue cannot lie there; says why.
  case invalidLayout(String)
  /// The program posted a chain that virtio forbids; says why. Nothing was posted.
  case invalidChain(String)
  /// The other side broke the protocol: nothing is served any more until both sides begin anew, as after virtio's
  /// DEVICE_NEEDS_RESET.
  case needsReset(VirtqueueViolation)
  /// The memory failed for good: it was unmapped, or its fault handler is lost.
  case memory(PinError)

  public var description: String {
    switch self {
    case .invalidLayout(let reason): "invalid virtqueue layout: \(reason)"
    case .invalidChain(let reason): "invalid chain: \(reason)"
    case .needsReset(let violation): "the virtqueue needs a reset: \(violation)"
    case .memory(let error): "\(error)"
    }
  }
}

/// How the other side of a queue broke the protocol.
public enum VirtqueueViolation: Hashable, Sendable, CustomStringConvertible {
  // MARK: What a driver can do to a device

  /// More chains became available at once than the queue has entries, or fewer than there were.
  case availableIndexJumped(from: UInt16, to: UInt16)
  /// The available ring names a descriptor that the table does not have.
  case headOutOfRange(UInt16)
  /// A descriptor's `next` names one that the table does not have.
  case nextOutOfRange(descriptor: UInt16, next: UInt16)
  /// The chain has more descriptors than the queue has: it loops.
  case chainTooLong(head: UInt16)
  /// The chain has more than 2^32 bytes.
  case chainTooLarge(head: UInt16)
  /// Indirect descriptors were not negotiated.
  case indirect(descriptor: UInt16)
  /// A buffer the device may read follows one it may write.
  case readableAfterWritable(descriptor: UInt16)
  /// The buffer does not lie in the memory, or its end overflows.
  case outsideMemory(descriptor: UInt16, address: UInt64, length: UInt32)

  // MARK: What a device can do to a driver

  /// More chains were used than are outstanding.
  case usedIndexJumped(from: UInt16, to: UInt16)
  /// The used ring names a chain that is not outstanding.
  case usedUnknown(id: UInt32)
  /// The device claims to have written more than the chain has room for.
  case usedTooLong(id: UInt16, length: UInt32)

  public var description: String {
    switch self {
    case .availableIndexJumped(let from, let to): "the available index went from \(from) to \(to)"
    case .headOutOfRange(let head): "the available ring names descriptor \(head), which the table does not have"
    case .nextOutOfRange(let descriptor, let next):
      "descriptor \(descriptor) goes on at \(next), which the table does not have"
    case .chainTooLong(let head): "the chain from descriptor \(head) on loops"
    case .chainTooLarge(let head): "the chain from descriptor \(head) on has more than 2^32 bytes"
    case .indirect(let descriptor): "descriptor \(descriptor) is indirect, which was not negotiated"
    case .readableAfterWritable(let descriptor): "descriptor \(descriptor) is readable and follows a writable one"
    case .outsideMemory(let descriptor, let address, let length):
      "descriptor \(descriptor) has \(length) bytes at 0x\(String(address, radix: 16)), outside the memory"
    case .usedIndexJumped(let from, let to): "the used index went from \(from) to \(to)"
    case .usedUnknown(let id): "the used ring names chain \(id), which is not outstanding"
    case .usedTooLong(let id, let length): "\(length) bytes were written to chain \(id), which has less room"
    }
  }
}
