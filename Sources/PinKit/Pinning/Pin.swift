/// Pages that stay where they are, as long as the value lives.
///
/// Nothing takes their memory away (P4): what would, fails with `.pinned` or waits. Of `.pool` memory the bytes are the pool's own mapping
/// of the frames, and a write through the pin goes around every write protection, as a device's does; of other memory they are the region's
/// own. A page under a pin for writing is in every dirty set until after it is unpinned, and a snapshot copies it at once (P6).
///
/// Noncopyable; dropping it unpins, once (P7). It keeps the memory of its pages, also when the program lets go of the ``Region`` itself: then
/// nobody can reach it any more but through the pin, and the rest of the memory goes with the last of the region's pins. A region over a store
/// stays as a whole, to be written back after that.
@safe public struct Pin: ~Copyable, @unchecked Sendable {  // the counts are atomics, the rest does not change
  /// What is pinned: from the first page that was asked for up to the first that could not be.
  public let pages: Range<Int>
  public let options: PinOptions
  /// Of a page: a power of two.
  private let pageShift: UInt8
  private let forkGeneration: UInt32
  /// Not counted: it is there as long as pages are pinned.
  private let memory: Uncounted<RegionMemory>
  /// A region whose bytes are to be written back.
  private let stored: Region?
  let start: UInt
  /// The one extent that has all frames; 0 where there are several, or none.
  private let extent: UInt
  private let detail: PinDetail?

  @inline(__always) init(
    _ region: Region, _ pages: Range<Int>, _ options: PinOptions, start: UInt, extent: UInt, _ detail: PinDetail?
  ) {
    memory = Uncounted(region.memory)
    stored = region.isStored ? region : nil
    forkGeneration = Kernel.forkGeneration
    pageShift = UInt8(truncatingIfNeeded: region.pageSize.trailingZeroBitCount)
    self.pages = pages
    self.options = options
    self.start = start
    self.extent = extent
    self.detail = detail
  }

  deinit {
    // A child of fork() has a copy of the value, and none of the counts.
    guard isOfThisProcess else { return }
    let id = memory.with { memory in
      let id = memory.id
      if let detail, !detail.pieces.isEmpty {
        for piece in detail.pieces { memory.dropPins(piece.pages, forWriting: options.isForWriting, extent: piece.extent) }
      } else {
        memory.dropPins(pages, forWriting: options.isForWriting, extent: extent)
      }
      return id
    }
    PinnedOrphans.lookAfterUnpin(id)
  }

  /// A child of `fork()` has a copy of the value, and nothing that it keeps.
  @inline(__always) private var isOfThisProcess: Bool { forkGeneration == Kernel.forkGeneration }

  /// Lets go of the pages. The same happens when the value is dropped.
  public consuming func unpin() {}

  /// Why fewer pages were pinned than were asked for; `nil` if all were.
  public var shortfall: PinError? { detail?.shortfall }

  /// Has trackers report the pages, also where nothing was written through PinKit: a device wrote them. Does not block.
  public func markDirty() {
    guard isOfThisProcess else { return }
    memory.with { $0.table.markWritten(pages) }
    stored?.supply?.markDirty(pages)
  }

  /// In bytes.
  public var byteCount: Int { pages.count << Int(pageShift) }

  /// The bytes where the region has, or had, them.
  var regionAddresses: AddressRange? {
    isOfThisProcess ? memory.with { $0.addressesUnchecked(of: pages) } : nil
  }

  /// What the metadata of a page's frame says now, of the frame that is pinned; `nil` for memory that is not of a pool.
  public func frameState(of page: Int) -> FrameState? {
    guard pages.contains(page), isOfThisProcess else { return nil }
    let found = detail?.pieces.first { $0.pages.contains(page) }?.extent ?? extent
    guard let pointer = unsafe Extent.Pointer(bitPattern: found) else { return nil }
    var state = unsafe FrameReference.state(of: pointer, page)
    if let supply = stored?.supply {
      (state.isDirty, state.isUnderWriteback) = (supply.isDirty(page), supply.isUnderWriteback(page))
    }
    return state
  }

  /// Where the bytes are, in stretches that are each contiguous, without mapping anything.
  func forEachStretch(_ body: (AddressRange) -> Bool) {
    guard start == 0, let detail else {
      _ = body(AddressRange(start: start, count: byteCount))
      return
    }
    for piece in detail.pieces {
      if !body(AddressRange(start: piece.start, count: piece.pages.count * Memory.pageSize)) { return }
    }
  }
}

/// What only few pins need: more than one piece, or less than was asked for.
final class PinDetail: Sendable {
  struct Piece {
    var pages: Range<Int>
    let extent: UInt
    /// Where the pool maps it.
    let start: UInt
  }
  let pieces: [Piece]
  let shortfall: PinError?
  /// The pieces side by side.
  private let alias: Mapping?

  init(pieces: [Piece], shortfall: PinError?, alias: consuming Mapping?) {
    self.pieces = pieces
    self.shortfall = shortfall
    self.alias = alias
  }
}
