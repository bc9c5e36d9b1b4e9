/// Who must hear of writes to a piece of memory, as the running kernel decides it for a mapping (P2).
///
/// Two questions that are easily taken for one. ``needsDirtyTracking`` is about the *file*: somebody will write the page back or must
/// agree to its becoming writable, and a write that goes around the page table is lost to him; it decides about long-term pins.
/// ``wantsWriteNotify`` is about the *page-table entries*: they start read-only, so that the first write to each page faults. Whatever
/// needs dirty tracking wants to be notified, and not the other way round: write-protected shared memory has no file that could lose a
/// write. The kernel's functions of these names are in `mm/vma.c`.
public struct DirtyTracking: Sendable, Hashable, Codable {
  /// Of the mapping, cut to what was asked about.
  public var range: AddressRange
  public var memory: MemoryKind
  public var isShared: Bool
  public var isReadable: Bool
  public var isWritable: Bool
  /// A userfaultfd, or PinKit's own tracking, can write-protect its pages.
  public var isWriteProtectable: Bool

  /// Whether a long-term pin for writing would go around somebody who must hear of writes (`vma_needs_dirty_tracking`).
  public var needsDirtyTracking: Bool { isShared && isWritable && memory.tracksDirtyPages }

  /// Whether page-table entries start read-only, to notice the first write (`vma_wants_writenotify`). In private or read-only memory
  /// they do so anyway, and nobody asks. Soft-dirty tracking of the kernel, which counts too, is not looked at.
  public var wantsWriteNotify: Bool {
    isShared && isWritable && (memory.tracksDirtyPages || (isWriteProtectable && memory != .deviceMemory))
  }

  /// What `/proc/self` says of the mappings in `range`, in order of address.
  ///
  /// Costs as much as a walk over the page tables of the whole process. Says nothing of changes made meanwhile.
  ///
  /// - Throws: ``PinError``: `.invalidArgument` if the range is empty, `.mappingChanged` if a part of it is not mapped, `.unsupported`
  ///   without /proc.
  public static func of(_ range: AddressRange) throws(PinError) -> [DirtyTracking] {
    guard !range.isEmpty else {
      throw PinError(.invalidArgument, operation: "look at a mapping", range: range, advice: "The range is empty.")
    }
    let found = try ProcessMaps.allDetails(in: range)
    let mounts = try MountTable()
    var at = range.start
    for details in found where details.mapping.range.start <= at { at = max(at, details.mapping.range.end) }
    guard at >= range.end else {
      throw PinError(
        .mappingChanged, operation: "look at a mapping", range: range,
        advice: "Nothing is mapped at 0x\(String(at, radix: 16)).")
    }
    return found.map { details in
      DirtyTracking(
        range: details.mapping.range.clamped(to: range), memory: MemoryKind(details, mounts),
        isShared: details.mapping.isShared, isReadable: details.mapping.isReadable,
        isWritable: details.mapping.isWritable, isWriteProtectable: details.isWriteProtectable)
    }
  }
}
