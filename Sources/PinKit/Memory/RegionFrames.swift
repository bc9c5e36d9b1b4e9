internal import Synchronization

/// What a `.pool` region begins with.
@safe struct PoolExtent {
  let pool: FramePool
  let extent: Extent.Pointer
  /// Whether the extent was made for this region, and is not another's that it shares.
  let isOwner: Bool
  let policy: ReusePolicy
}

/// Which frame each page of a `.pool` region has, in its page table: the region's base extent unless the entry names another.
///
/// Pages change frame under the shared wrprotect lock with their claim held; the region as a whole is shared under the exclusive lock.
@safe final class RegionFrames: @unchecked Sendable {  // the extents outlive it, and the rest is atomics
  let pool: FramePool
  let base: Extent.Pointer
  let addresses: AddressRange
  let table: PageTable
  /// Pages whose entry names an extent other than the base.
  let broken: PageBitmap
  private let metadata: Mapping
  /// Where pages get frames of their own: an extent that nobody else takes frames of. 0 while nothing is shared.
  let target = Atomic<UInt>(0)
  private let spare = Atomic<UInt>(0)
  private let rule: Atomic<UInt8>
  /// The extents that it took frames of, to be used again when they are empty.
  private let extents: Mutex<[UInt]>
  private let isReleased = Atomic<Bool>(false)
  /// Runs of pages with consecutive frames, over all regions of the process: each is a mapping of its own to the kernel.
  static let pieces = Atomic<Int>(0)
  private let ownPieces = Atomic<Int>(0)

  /// Makes a region's frames; `base` is counted as mapped by one more region.
  init(
    pool: FramePool, base: Extent.Pointer, isOwner: Bool, addresses: AddressRange, table: PageTable, policy: ReusePolicy
  ) throws(PinError) {
    let pages = table.pageCount
    let metadata = try Mapping(count: 64 + PageBitmap.size(pageCount: pages))
    for advice in [Memory.Advice.noHugePages, .dontFork, .dontDump] { try? Memory.advise(metadata.range, advice) }
    let start = unsafe UnsafeMutableRawPointer(bitPattern: metadata.range.start)!
    broken = unsafe PageBitmap(
      memory: start + 64, top: start.bindMemory(to: Atomic<UInt64>.self, capacity: 8), pageCount: pages)
    self.metadata = metadata
    self.pool = pool
    unsafe self.base = base
    self.addresses = addresses
    self.table = table
    rule = Atomic(policy.rule.rawValue)
    extents = Mutex(isOwner ? [UInt(bitPattern: base)] : [])
    unsafe base.pointee.mappers.add(1, ordering: .sequentiallyConsistent)
  }

  deinit { release() }

  @inline(__always) var policy: ReusePolicy {
    get { ReusePolicy(rule: ReusePolicy.Rule(rawValue: rule.load(ordering: .relaxed))!) }
    set { rule.store(newValue.rule.rawValue, ordering: .relaxed) }
  }

  /// The extent that `page`'s frame is in; the frame's number in it is the page's.
  @inline(__always) func extent(of page: Int) -> Extent.Pointer {
    let id = table.extent(page)
    return unsafe id == 0 ? base : pool.extent(id)
  }

  @inline(__always) private func name(of extent: Extent.Pointer) -> UInt32 {
    unsafe extent == base ? 0 : extent.pointee.id
  }

  var targetExtent: Extent.Pointer? { unsafe Extent.Pointer(bitPattern: target.load(ordering: .acquiring)) }

  /// Makes an extent that can become the target. Allocates: not for the fault path.
  func prepareTarget() throws(PinError) {
    guard spare.load(ordering: .relaxed) == 0 else { return }
    let fresh = unsafe try pool.makeExtent(pageCount: table.pageCount)
    spare.store(UInt(bitPattern: fresh), ordering: .relaxed)
    extents.withLock { $0.append(UInt(bitPattern: fresh)) }
    recycleExtents()
  }

  /// Sees to it that every page finds a free frame in the target, however often it was shared: the region has taken none there
  /// since it was last shared. Nobody breaks a page away meanwhile: under the exclusive lock, or before the region is known.
  func renewTarget() {
    if let target = unsafe targetExtent, unsafe target.pointee.isUntouched { return }
    let fresh = spare.exchange(0, ordering: .relaxed)
    precondition(fresh != 0, "no target was prepared")
    target.store(fresh, ordering: .sequentiallyConsistent)
  }

  /// Sees to it that the pool maps every extent that a page has its frame in.
  func mapDirectly() throws(PinError) {
    for raw in unsafe [UInt(bitPattern: base)] + extents.withLock({ $0 }) {
      _ = unsafe try pool.directMap(Extent.Pointer(bitPattern: raw)!)
    }
    unsafe try forEachPiece { _, extent throws(PinError) in _ = unsafe try pool.directMap(extent) }
  }

  /// Where the pool maps the frame of a page, after ``mapDirectly()``.
  @inline(__always) func directAddress(of page: Int) -> UInt {
    unsafe extent(of: page).pointee.directAddress.load(ordering: .acquiring) + UInt(page * Memory.pageSize)
  }

  /// Makes the extents available to others from which everybody has taken leave. The base is the region's until it goes.
  private func recycleExtents() {
    extents.withLock { list in
      list.removeAll { raw in
        let isTarget = raw == target.load(ordering: .relaxed) || raw == spare.load(ordering: .relaxed)
        guard !isTarget, unsafe raw != UInt(bitPattern: base) else { return false }
        return unsafe pool.recycle(Extent.Pointer(bitPattern: raw)!)
      }
    }
  }

  /// Whether every one of `pages` could have a frame of the target now.
  @inline(__always) func claimTarget(_ pages: Range<Int>, _ target: Extent.Pointer) -> Bool {
    for page in pages where unsafe !target.pointee.claimFree(page) {
      unsafe unclaimTarget(pages.lowerBound..<page, target)
      return false
    }
    return true
  }

  @inline(__always) func unclaimTarget(_ pages: Range<Int>, _ target: Extent.Pointer) {
    for page in pages { unsafe target.pointee.removeMapping(page) }
    if !pages.isEmpty { pool.noteDead() }
  }

  /// Notes that `pages`, which are mapped to frames of `extent` now, have left theirs.
  @inline(__always) func move(_ pages: Range<Int>, to extent: Extent.Pointer) {
    let before = countPieces(around: pages)
    let id = unsafe name(of: extent)
    for page in pages {
      let old = unsafe self.extent(of: page)
      table.setExtent(id, at: page)
      unsafe old.pointee.removeMapping(page)
    }
    broken.insert(pages)
    pool.noteDead()
    count(pieces: countPieces(around: pages) - before)
  }

  private func count(pieces: Int) {
    ownPieces.add(pieces, ordering: .relaxed)
    Self.pieces.add(pieces, ordering: .relaxed)
  }

  /// Counts what a clone has taken over.
  func countPieces() {
    var pieces = 0
    unsafe try? forEachPiece { _, _ in pieces += 2 }
    count(pieces: pieces)
  }

  /// How many mappings end within `pages` or at their edges.
  private func countPieces(around pages: Range<Int>) -> Int {
    var count = 0
    var last = table.extent(max(0, pages.lowerBound - 1))
    for page in max(1, pages.lowerBound)..<min(table.pageCount, pages.upperBound + 1) {
      let next = table.extent(page)
      if next != last { count += 1 }
      last = next
    }
    return count
  }

  /// Maximal runs of pages with consecutive frames of one extent.
  func forEachPiece(_ body: (Range<Int>, Extent.Pointer) throws(PinError) -> Void) throws(PinError) {
    var pieces: [(Range<Int>, UInt32)] = []
    broken.forEachRun { run in
      for page in run {
        let id = table.extent(page)
        if id == 0 { continue }
        if let last = pieces.last, last.1 == id, last.0.upperBound == page {
          pieces[pieces.count - 1].0 = last.0.lowerBound..<page + 1
        } else {
          pieces.append((page..<page + 1, id))
        }
      }
    }
    for (run, id) in pieces { try unsafe body(run, pool.extent(id)) }
  }

  /// Lets go of every frame. The pages are not mapped any more.
  func release() {
    guard !isReleased.exchange(true, ordering: .acquiringAndReleasing) else { return }
    unsafe try? forEachPiece { run, extent in
      for page in run {
        // In this order the counts are never too low: a frame that others have is never taken for dead.
        unsafe base.pointee.addMapping(page, isExclusive: true)
        table.setExtent(0, at: page)
        unsafe extent.pointee.removeMapping(page)
      }
    }
    Self.pieces.subtract(ownPieces.load(ordering: .relaxed), ordering: .relaxed)
    unsafe base.pointee.mappers.subtract(1, ordering: .sequentiallyConsistent)
    unsafe base.pointee.tracked.forEachRun { run in
      for frame in run { unsafe base.pointee.noteIfDead(frame) }
    }
    pool.noteDead()
    pool.giveBackDead()
    target.store(0, ordering: .sequentiallyConsistent)
    pool.adopt(
      extents.withLock { list in
        defer { list = [] }
        return list
      })
  }
}
