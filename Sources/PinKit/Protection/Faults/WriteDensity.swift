internal import Synchronization

/// How many pages to copy for a write, from how often its neighbourhood was written.
///
/// Whoever copies a page can copy its neighbours for a fraction of the price of a fault each, which is wasted on a writer that
/// touches a page here and a page there, and paid a second time when the pages are protected again. So a fault takes neighbours along
/// only where many pages were written: in its own block of 512 pages, or in the group of 64 blocks that it is in, on average. Chance gives
/// one block in three more faults than the average of a writer that hits pages here and there; the average of a group it hardly moves. So
/// the group's decides early, and a block's own count, for those who write one place only, late. All state is advisory.
@safe struct WriteDensity: ~Copyable, @unchecked Sendable {  // words are touched through atomics only
  private static let blockShift = 9
  private static let groupShift = 6
  /// Faults a block from which on the group, or the block itself, counts as being written all over.
  private static let dense = (group: 6, block: 14)
  /// So many faults a block must have had of its own, whatever the group.
  private static let own = 3
  /// So many blocks a group must have for its average to say anything.
  private static let fewest = 8

  private let counts: UnsafeMutablePointer<Atomic<UInt8>>
  private let groups: UnsafeMutablePointer<Atomic<UInt32>>
  private let count: Int
  private let isTouched = Atomic<Bool>(false)

  init(pageCount: Int) {
    count = pageCount >> Self.blockShift + 1
    unsafe counts = .allocate(capacity: count)
    unsafe groups = .allocate(capacity: count >> Self.groupShift + 1)
    for index in 0..<count { unsafe (counts + index).initialize(to: Atomic(0)) }
    for index in 0...count >> Self.groupShift { unsafe (groups + index).initialize(to: Atomic(0)) }
  }
  deinit {
    unsafe counts.deallocate()
    unsafe groups.deallocate()
  }

  /// A power of two.
  @inline(__always) func window(at page: Int) -> Int {
    let block = page >> Self.blockShift
    let group = block >> Self.groupShift
    let faults = Int(unsafe counts[block].load(ordering: .relaxed))
    let inGroup = Int(unsafe groups[group].load(ordering: .relaxed))
    if faults < 255 {
      unsafe counts[block].store(UInt8(faults + 1), ordering: .relaxed)
      unsafe groups[group].store(UInt32(inGroup + 1), ordering: .relaxed)
    }
    if faults == 0 { isTouched.store(true, ordering: .relaxed) }
    // More than 128 pages would save little, and hold a writer up for longer.
    if faults >= Self.dense.block { return 128 }
    let blocks = min(1 << Self.groupShift, count - group << Self.groupShift)
    // Of a few blocks the average is little more than one block's count.
    if blocks < Self.fewest { return faults < 5 ? 1 : faults < 7 ? 4 : faults < 9 ? 16 : 128 }
    if faults >= Self.own, inGroup >= Self.dense.group * blocks { return 128 }
    return faults < 8 ? 1 : faults < 11 ? 4 : 16
  }

  /// Forgets what was written; called under the exclusive lock.
  func reset() {
    guard isTouched.exchange(false, ordering: .relaxed) else { return }
    for index in 0..<count { unsafe counts[index].store(0, ordering: .relaxed) }
    for index in 0...count >> Self.groupShift { unsafe groups[index].store(0, ordering: .relaxed) }
  }
}
