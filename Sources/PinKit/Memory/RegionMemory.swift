internal import Synchronization

/// What the pins of a region use: its page table, its frames, and its bytes where those are its own mapping.
///
/// A pin holds it without counting a reference: the count that all pins of a region share would be one word that every thread writes. The region
/// holds it, and if pages are pinned still when the region goes, ``PinnedOrphans`` does, until the last of them is not.
final class RegionMemory: Sendable {
  let space: AddressSpace
  /// Of the region.
  let id: UInt64
  let addresses: AddressRange
  /// In bytes.
  let pageSize: Int
  let table: PageTable
  /// Which frames its pages have; of `.pool` regions only.
  let frames: RegionFrames?
  private let metadata: Mapping
  private let owned: Mutex<Mapping?>
  /// The program unmapped the region, and left its frames to the pins.
  let isLeftToPins = Atomic<Bool>(false)
  /// No page before it is pinned, of a region that nobody can pin any more.
  private let firstPinned = Atomic<Int>(0)

  init(
    space: AddressSpace, id: UInt64, addresses: AddressRange, pageSize: Int, owned: consuming Mapping?, base: PoolExtent?
  ) throws(PinError) {
    let pageCount = addresses.count / pageSize
    metadata = try Mapping.forNotes(count: PageTable.size(pageCount: pageCount))
    table = unsafe PageTable(memory: metadata.start, pageCount: pageCount)
    if let base {
      frames = unsafe try RegionFrames(
        pool: base.pool, base: base.extent, isOwner: base.isOwner, addresses: addresses, table: table, policy: base.policy)
    } else {
      frames = nil
    }
    self.space = space
    self.id = id
    self.addresses = addresses
    self.pageSize = pageSize
    self.owned = Mutex(owned)
  }

  var isPinned: Bool { table.firstPinned(from: 0) != nil }

  /// The same once nobody can pin any more: all calls together look at each page once. One thread at a time.
  func isStillPinned() -> Bool {
    let found = table.firstPinned(from: firstPinned.load(ordering: .relaxed))
    if let found { firstPinned.store(found, ordering: .relaxed) }
    return found != nil
  }

  /// Gives the bytes up: owned memory is unmapped, and other regions may have the addresses. A second call does nothing.
  func unmap() {
    ManagedRanges.release(id: id)
    owned.withLock { $0 = nil }
  }

  @inline(__always) func addressesUnchecked(of pages: Range<Int>) -> AddressRange {
    AddressRange(
      start: addresses.start + UInt(pages.lowerBound * pageSize),
      end: addresses.start + UInt(pages.upperBound * pageSize))
  }

  /// Takes pins off the counts: of the frames first, so that whoever finds a page unpinned finds its frame so as well. With the last of them the
  /// object itself may go, if the region has.
  @inline(__always) func dropPins(_ pages: Range<Int>, forWriting isForWriting: Bool, extent: UInt) {
    if let pointer = unsafe Extent.Pointer(bitPattern: extent) {
      for page in pages {
        if unsafe pointer.pointee.unpin(page) { frames?.pool.noteDead() }
        TestHooks.reach(.unpinning, page: page)
        table.removePin(page, forWriting: isForWriting)
      }
    } else {
      for page in pages { table.removePin(page, forWriting: isForWriting) }
    }
  }

  /// Names up to eight runs.
  func pinnedError(_ runs: [Range<Int>], _ operation: StaticString) -> PinError {
    let names = runs.prefix(8).map { $0.count == 1 ? "\($0.lowerBound)" : "\($0.lowerBound)...\($0.upperBound - 1)" }
    let rest = runs.count > 8 ? ", and \(runs.count - 8) more runs" : ""
    return PinError(
      .pinned, operation: "\(operation)", range: addressesUnchecked(of: runs[0]),
      advice:
        "Pages \(names.joined(separator: ", "))\(rest) are pinned: unpin them first, or call it with whilePinned: .wait.")
  }
}

/// The memory of regions that are gone, and of which pages are pinned (P4, P7).
///
/// Whoever takes the last pin off ends it:
///
///     the region:  the mark of its id is raised    ─► it looks for pins; without any it ends here
///     an unpin:    the pin is taken off its entry  ─► it looks at the mark; if that is raised, it looks for pins in turn
///
/// One of the two sees the other. Once its pin is off, an unpin touches nothing of the region but the mark, which is never freed. Regions share
/// marks: one that is raised for another costs an unpin a look into the list.
enum PinnedOrphans {
  private struct List {
    var generation = Kernel.forkGeneration
    var memory: [UInt64: RegionMemory] = [:]
  }
  private static let list = Mutex(List())

  /// Takes the memory of a region that nobody holds any more. It ends now, or with its last pin.
  static func take(_ memory: RegionMemory) {
    if !memory.isPinned { return memory.unmap() }
    OrphanMarks.raise(memory.id)
    change { $0.memory[memory.id] = memory }
    settle(memory.id)
  }

  /// After a pin of a region was taken off.
  @inline(__always) static func lookAfterUnpin(_ id: UInt64) {
    if OrphanMarks.isRaised(id) { settle(id) }
  }

  /// Ends the memory if it has no pins.
  @inline(never) private static func settle(_ id: UInt64) {
    let ended = change { list -> RegionMemory? in
      guard let memory = list.memory[id], !memory.isStillPinned() else { return nil }
      return list.memory.removeValue(forKey: id)
    }
    guard let ended else { return }
    OrphanMarks.lower(id)
    ended.unmap()
  }

  /// Those of a space.
  static func memory(of space: AddressSpace) -> [RegionMemory] {
    change { $0.memory.values.filter { $0.space === space } }
  }

  private static func change<Result>(_ body: (inout List) -> Result) -> Result {
    // A child that was forked in the middle could never let go of a pin.
    let (result, inherited) = Uffd.withoutForks {
      list.withLock { list in
        // A child of fork() has none of its parent's pins. What it inherited goes without the locks: there may be stores of the program's.
        var inherited: List?
        if list.generation != Kernel.forkGeneration {
          inherited = list
          list = List()
        }
        return (body(&list), inherited)
      }
    }
    _ = inherited
    return result
  }
}
