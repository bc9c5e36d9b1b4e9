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
  /// The next target; 0 while none is prepared.
  private let spare = Atomic<UInt>(0)
  /// Changes under the exclusive lock; who asks without it hears of the one before at most.
  private let rule: Atomic<UInt8>
  /// The extents that it took frames of, to be used again when they are empty.
  private let extents: Mutex<[UInt]>
  private let isReleased = Atomic<Bool>(false)
  private let isCounted = Atomic<Bool>(false)
  private let forkGeneration = Kernel.forkGeneration
  /// Boundaries between pieces, over all regions of the process: each is one mapping more to the kernel. Who goes by an older number takes a
  /// run along that is too wide, or hears from the kernel that no mapping is left.
  static let pieces = Atomic<Int>(0)
  /// How many of them this region has added.
  private let ownPieces = Atomic<Int>(0)

  /// Makes a region's frames; the owner's `base` is counted as mapped by it.
  init(
    pool: FramePool, base: Extent.Pointer, isOwner: Bool, addresses: AddressRange, table: PageTable, policy: ReusePolicy
  ) throws(PinError) {
    let pages = table.pageCount
    let metadata = try Mapping.forNotes(count: 64 + PageBitmap.size(pageCount: pages))
    let start = unsafe metadata.start
    broken = unsafe PageBitmap(
      memory: start + 64, top: start.bindMemory(to: Atomic<UInt64>.self, capacity: 8), pageCount: pages)
    self.metadata = metadata
    self.pool = pool
    unsafe self.base = base
    self.addresses = addresses
    self.table = table
    rule = Atomic(policy.rule.rawValue)
    extents = Mutex(isOwner ? [UInt(bitPattern: base)] : [])
    if isOwner { beginMapping() }
  }

  /// Counts the region as one that maps the base. A clone does so in the moment in which it shares: before that its parent's frames
  /// would look shared, and a writer would leave them.
  func beginMapping() {
    isCounted.store(true, ordering: .relaxed)
    unsafe base.pointee.addMapper(1)
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

  /// Makes the extent that ``renewTarget()`` needs. Allocates: not for the fault path, nor under the wrprotect lock.
  func prepareTarget() throws(PinError) {
    let isFirst = target.load(ordering: .relaxed) == 0
    guard isFirst || spare.load(ordering: .relaxed) == 0 else { return }
    let made = unsafe try pool.makeExtent(pageCount: table.pageCount)
    // Its frames are taken one by one, and each says for itself whether it is exclusive.
    unsafe made.pointee.isShared.store(true, ordering: .sequentiallyConsistent)
    let fresh = UInt(bitPattern: made)
    extents.withLock { $0.append(fresh) }
    // Nobody takes frames for a region that shares none.
    if isFirst {
      target.store(fresh, ordering: .sequentiallyConsistent)
    } else {
      spare.store(fresh, ordering: .sequentiallyConsistent)
    }
  }

  /// Sees to it that every shared page finds a free frame in the target, whatever else is written: it is one from which the region has
  /// taken none that it may have shared since. Under the exclusive lock, in which the frames are shared: a frame that a writer took from
  /// it in between would be shared with the others, and there would be no second one for its page.
  func renewTarget() {
    if let target = unsafe targetExtent, unsafe target.pointee.isUntouched { return }
    target.store(spare.exchange(0, ordering: .relaxed), ordering: .sequentiallyConsistent)
  }

  /// Sees to it that the pool maps every extent that a page has its frame in.
  func mapDirectly() throws(PinError) {
    for raw in unsafe [UInt(bitPattern: base)] + extents.withLock({ $0 }) {
      _ = unsafe try pool.directMap(Extent.Pointer(bitPattern: raw)!)
    }
    unsafe try forEachPiece { _, extent throws(PinError) in _ = unsafe try pool.directMap(extent) }
  }

  /// Sees to it that the pool maps the base, in which most pages have their frames.
  func mapBase() throws(PinError) { _ = unsafe try pool.directMap(base) }

  /// Where the pool maps the frame of a page, after ``mapDirectly()``.
  @inline(__always) func directAddress(of page: Int) -> UInt {
    unsafe extent(of: page).pointee.directAddress.load(ordering: .acquiring) + UInt(page * Memory.pageSize)
  }

  /// Makes the extents available to others from which everybody has taken leave. The base is the region's until it goes.
  ///
  /// Whoever was resolving a fault while one of them was the target is through: the exclusive lock was taken since.
  func recycleExtents() {
    extents.withLock { list in
      list.removeAll { raw in
        guard raw != target.load(ordering: .relaxed), raw != spare.load(ordering: .relaxed),
          unsafe raw != UInt(bitPattern: base)
        else { return false }
        return unsafe pool.recycle(Extent.Pointer(bitPattern: raw)!)
      }
    }
  }

  /// Takes the frame of each of `pages` in the target, but for those that have it; false if somebody has one, and none is taken.
  @inline(__always) func claimTarget(_ pages: Range<Int>, _ target: Extent.Pointer) -> Bool {
    for page in pages where unsafe extent(of: page) != target && !target.pointee.claimFree(page) {
      unsafe unclaimTarget(pages.lowerBound..<page, target)
      return false
    }
    return true
  }

  /// Gives back what ``claimTarget(_:_:)`` took.
  @inline(__always) func unclaimTarget(_ pages: Range<Int>, _ target: Extent.Pointer) {
    for page in pages where unsafe extent(of: page) != target { unsafe target.pointee.removeMapping(page) }
    if !pages.isEmpty { pool.noteDead() }
  }

  /// Notes that `pages`, which are mapped to frames of `extent` now, have left theirs.
  @inline(__always) func move(_ pages: Range<Int>, to extent: Extent.Pointer) {
    let before = countPieces(around: pages)
    TestHooks.reach(.moving, page: pages.lowerBound)
    let id = unsafe name(of: extent)
    for page in pages {
      let old = unsafe self.extent(of: page)
      if unsafe old == extent { continue }
      table.setExtent(id, at: page)
      unsafe old.pointee.removeMapping(page)
    }
    broken.insert(pages)
    pool.noteDead()
    let difference = countPieces(around: pages) - before
    ownPieces.add(difference, ordering: .relaxed)
    Self.pieces.add(difference, ordering: .relaxed)
  }

  /// Makes the frames of `pages` read as zeros and cost nothing, also where they are locked. 0 or a negative errno.
  func punch(_ pages: Range<Int>) -> CInt {
    var start = pages.lowerBound
    while start < pages.upperBound {
      let extent = unsafe extent(of: start)
      var end = start + 1
      while end < pages.upperBound, unsafe self.extent(of: end) == extent { end += 1 }
      let result = unsafe pool.punch(extent.pointee, start..<end)
      if result != 0 { return result }
      start = end
    }
    return 0
  }

  /// Counts the boundaries between pieces anew, while no page changes frame: what a clone begins with, and what was one or two off.
  func recountPieces() {
    let count = boundaryCount()
    let before = ownPieces.exchange(count, ordering: .relaxed)
    Self.pieces.add(count - before, ordering: .relaxed)
  }

  private func boundaryCount() -> Int {
    var count = 0
    var last = 0
    unsafe try? forEachPiece { run, _ in
      // A piece that begins where the one before it ends has one boundary with it.
      if run.lowerBound > 0, run.lowerBound != last { count += 1 }
      if run.upperBound < table.pageCount { count += 1 }
      last = run.upperBound
    }
    return count
  }

  /// How many mappings end within `pages` or at their edges. Pages next to them may change frame meanwhile: each time it is one or two
  /// off, until the region is cloned or gone.
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
    // A child of fork() has neither the metadata nor a say in what its parent's frames hold.
    guard forkGeneration == Kernel.forkGeneration else { return }
    guard !isReleased.exchange(true, ordering: .acquiringAndReleasing) else { return }
    Self.pieces.subtract(ownPieces.exchange(0, ordering: .relaxed), ordering: .relaxed)
    unsafe try? forEachPiece { run, extent in
      for page in run {
        // In this order the counts are never too low: a frame that others have is never taken for dead.
        unsafe base.pointee.addMapping(page, isExclusive: true)
        table.setExtent(0, at: page)
        unsafe extent.pointee.removeMapping(page)
      }
    }
    if isCounted.load(ordering: .relaxed) { unsafe base.pointee.addMapper(-1) }
    unsafe base.pointee.tracked.forEachRun { run in
      for frame in run { unsafe base.pointee.noteIfDead(frame) }
    }
    pool.noteDead()
    pool.giveBackDead()
    target.store(0, ordering: .sequentiallyConsistent)
    spare.store(0, ordering: .sequentiallyConsistent)
    pool.adopt(
      extents.withLock { list in
        defer { list = [] }
        return list
      })
  }
}
