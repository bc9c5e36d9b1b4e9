internal import Synchronization

/// The decision at the heart of copy-on-write, in the fault path: a page whose frame others have gets a frame of its own before it is
/// written, in which the same bytes are.
///
/// The order of a break, with the page claimed and protected:
///
///     a frame of the target extent is taken       (nobody else takes any there)
///     the bytes are copied into it                (nobody writes the old frame: whoever shares it breaks away as well)
///     it is mapped in the page's place            (one step for whoever reads meanwhile: the bytes are the same)
///     the page table names it, the old frame is let go of
///     who waits is woken
@safe final class SharedFrames: FrameSharing, @unchecked Sendable {  // atomics and preallocated memory only
  let frames: RegionFrames
  /// A mapping for each piece counts against `vm.max_map_count`: beyond this many, pages break away in large runs.
  let pieceBudget: Int
  /// How far a break reaches when mappings are scarce, in pages.
  private static let wideReach = 512

  init(frames: RegionFrames) {
    self.frames = frames
    pieceBudget = max(1, ProcessMaps.maximumCount / 4 * 3)
  }

  // MARK: Deciding

  override func decide(_ page: Int, among pages: Range<Int>) -> (decision: ReuseDecision, pages: Range<Int>) {
    let policy = frames.policy
    let decision = decide(page, policy)
    guard decision != .retry else { return (.retry, page..<page + 1) }
    var first = page
    while first > pages.lowerBound, isAlike(first - 1, decision, policy) { first -= 1 }
    var end = page + 1
    while end < pages.upperBound, isAlike(end, decision, policy) { end += 1 }
    return (decision, first..<end)
  }

  /// A page that has broken away can be mapped once more along with others that do: it has its frame in the same place of the target as
  /// they have theirs. It must not be opened once more: its mapping may not be registered with the userfaultfd.
  @inline(__always) private func isAlike(_ page: Int, _ decision: ReuseDecision, _ policy: ReusePolicy) -> Bool {
    guard frames.table[page].contains(.open) else { return decide(page, policy) == decision }
    return unsafe decision == .copy && frames.extent(of: page) == frames.targetExtent
  }

  @inline(__always) private func decide(_ page: Int, _ policy: ReusePolicy) -> ReuseDecision {
    let extent = unsafe frames.extent(of: page)
    let counts = unsafe extent.pointee.counts(page)
    let decision = policy.decide(counts)
    // Proven once, it need not be proven again, whoever looks the frame up meanwhile.
    if decision == .reuse, policy == .exclusive, !counts.isExclusive { unsafe extent.pointee.markExclusive(page) }
    guard decision == .copy else { return decision }
    // Taken since the region was last shared, so nobody else has ever had it: whatever the counts say, they are references of its own.
    // And the target has no second frame for the page.
    if unsafe extent == frames.targetExtent { return .reuse }
    // A clone of a relative counts as a mapping of the whole base for a moment. Who has pinned the frame must not be left behind for it.
    return policy == .mapcount && counts.isExclusive ? .reuse : .copy
  }

  // MARK: Copying

  override func copy(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    if RegionFrames.pieces.load(ordering: .relaxed) > pieceBudget {
      return copyWidely(pages, reach: Self.wideReach, in: domain)
    }
    let resolution = copyOnce(pages, in: domain)
    guard resolution == .failed, domain.failure.load(ordering: .relaxed) == 0 else { return resolution }
    return copyWidely(pages, reach: 64, in: domain)
  }

  /// `.failed` if the kernel has no mapping left for a piece of this size.
  private func copyOnce(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    guard let target = unsafe frames.targetExtent else { return .retry }
    let place = unsafe target.pointee.place(of: pages.lowerBound)
    // Once for all that is done with it below: 0.4 µs of the several that a break takes.
    let file = frames.pool.descriptor(of: place)
    guard file >= 0 else {
      domain.fail(.poolClosed, errno: UffdResult.badDescriptor)
      return .failed
    }
    guard unsafe frames.claimTarget(pages, target) else { return .retry }
    var invalidation: Invalidation?
    switch domain.startInFaultPath(.clear, pages) {
    case .unwatched: invalidation = nil
    case .begun(let begun): invalidation = begun
    case .wouldBlock, .failed:
      unsafe frames.unclaimTarget(pages, target)
      return .retry
    }
    defer { invalidation?.end() }
    let copied = unsafe copyBytes(of: pages, to: target, file: file, in: domain)
    guard copied == 0 else {
      domain.copyError.store(-copied, ordering: .relaxed)
      unsafe frames.unclaimTarget(pages, target)
      // Out of memory: others may give some back before the patience of the fault is over.
      return .retry
    }
    TestHooks.reach(.copied, page: pages.lowerBound)
    if domain.hasSource { domain.withSource { $0.willOpen(pages) } }
    let range = domain.addresses(of: pages)
    domain.needsRegistration.store(true, ordering: .sequentiallyConsistent)
    // Nobody finds the old frame from here on, and whoever has it gives it up before the new one can be written (N5).
    if invalidation != nil {
      domain.table.clear(pages)
      TestHooks.reach(.cleared, page: pages.lowerBound)
    }
    defer {
      if invalidation != nil {
        domain.table.set(pages)
        TestHooks.reach(.set, page: pages.lowerBound)
      }
    }
    invalidation?.invalidateRange()
    let replaced = Memory.replace(range, file: file, offset: place.offset)
    guard replaced == 0 else {
      domain.copyError.store(-replaced, ordering: .relaxed)
      unsafe frames.unclaimTarget(pages, target)
      return .failed
    }
    if domain.copyError.load(ordering: .relaxed) != 0 { domain.copyError.store(0, ordering: .relaxed) }
    TestHooks.reach(.mapped, page: pages.lowerBound)
    _ = Memory.adviseResult(range, .dontFork)
    if domain.hasSeals { _ = Memory.adviseResult(range, .dontDump) }
    // The kernel makes the entries of reads by the dozen, those of writes one by one. The one who faulted needs no help.
    if pages.count > 1 { Memory.mapAround(range) }
    unsafe note(pages, target, domain)
    unsafe frames.move(pages, to: target)
    return .opened
  }

  func note(_ pages: Range<Int>, _ target: Extent.Pointer, _ domain: borrowing FaultDomain) {
    let policy = frames.policy
    var copies = 0
    var spurious = 0
    for page in pages {
      let extent = unsafe frames.extent(of: page)
      if unsafe extent == target { continue }
      copies += 1
      if unsafe policy.isSpurious(extent.pointee.counts(page)) { spurious += 1 }
    }
    domain.counters.add(.copies, copies)
    if spurious > 0 { domain.counters.add(.spuriousCopies, spurious) }
  }

  /// Copies `pages`, but for those that are in the target, run by run. 0 or a negative errno.
  func copyBytes(
    of pages: Range<Int>, to target: Extent.Pointer, file: CInt, in domain: borrowing FaultDomain
  ) -> CInt {
    let readsDirectly = domain.readsDirectly
    var start = pages.lowerBound
    while start < pages.upperBound {
      let extent = unsafe frames.extent(of: start)
      var end = start + 1
      while end < pages.upperBound, unsafe isOneRun(extent, frames.extent(of: end), target, readsDirectly) { end += 1 }
      let run = start..<end
      start = end
      if unsafe extent == target { continue }
      var source = domain.addresses(of: run)
      if readsDirectly {
        // A page that is not mapped cannot be read here: the fault would be ours to serve.
        let direct = unsafe extent.pointee.directAddress.load(ordering: .acquiring)
        guard direct != 0 else { return -12 }
        source = AddressRange(
          start: direct + UInt(run.lowerBound * Memory.pageSize), end: direct + UInt(run.upperBound * Memory.pageSize))
      }
      let result = Memory.write(source, file: file, offset: unsafe target.pointee.place(of: run.lowerBound).offset)
      if result != 0 { return result }
    }
    return 0
  }

  /// Whether a page is copied in one go with those before it. Read where the region maps them, it does not matter which frames they have.
  @inline(__always) private func isOneRun(
    _ first: Extent.Pointer, _ next: Extent.Pointer, _ target: Extent.Pointer, _ readsDirectly: Bool
  ) -> Bool {
    unsafe next == first || (!readsDirectly && first != target && next != target)
  }

  override func unshare(_ page: Int, in domain: borrowing FaultDomain) -> Unsharing { unshareAlone(page, in: domain) }

  // MARK: When mappings are scarce

  override func copyInstead(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    // In a loop: a method as an argument allocates in a build without optimization (K2).
    for page in pages where !mayMove(page) { return .failed }
    return copyWidely(pages, reach: 64, in: domain)
  }

  /// Whether a page can be copied at all, needed or not: it has a free frame in the target, and nobody expects it where it is.
  private func mayMove(_ page: Int) -> Bool {
    let extent = unsafe frames.extent(of: page)
    let counts = unsafe extent.pointee.counts(page)
    return unsafe extent != frames.targetExtent && !counts.isFrozen && !(counts.isExclusive && counts.mayBePinned)
  }

  /// Breaks a larger run away, up to where its neighbours have broken away before: then it joins them, and there are fewer mappings than
  /// before. The pages taken along are recorded as opened for a neighbour's sake.
  private func copyWidely(_ pages: Range<Int>, reach: Int, in domain: borrowing FaultDomain) -> FaultResolution {
    let table = domain.table
    let all = unsafe frames.base.pointee.part(of: pages.lowerBound)
    var reach = reach
    while true {
      let low = claim(from: pages.lowerBound, to: max(all.lowerBound, pages.lowerBound - reach), by: -1, domain)
      let high = claim(from: pages.upperBound, to: min(all.upperBound, pages.upperBound + reach), by: 1, domain)
      let wide = low.end..<high.end
      let resolution = copyOnce(wide, in: domain)
      for page in wide where !pages.contains(page) {
        if resolution == .opened { table.insert(.openAround, at: page) } else { table.noteTold(page) }
      }
      if resolution == .opened {
        noteAlong(low.end..<pages.lowerBound, domain)
        noteAlong(pages.upperBound..<high.end, domain)
        domain.counters.add(.widenedOpenings)
      }
      for page in wide where !pages.contains(page) { table.releaseClaim(page) }
      if resolution != .failed || domain.failure.load(ordering: .relaxed) != 0 { return resolution }
      // Whoever has the page that stopped this thread will let go of it.
      if low.isBlocked || high.isBlocked { return .retry }
      if reach >= all.count {
        domain.fail(.refused, errno: domain.copyError.load(ordering: .relaxed))
        return .failed
      }
      reach *= 8
    }
  }

  private func noteAlong(_ pages: Range<Int>, _ domain: borrowing FaultDomain) {
    if pages.isEmpty { return }
    domain.table.open.insert(pages)
    domain.counters.add(.openedPages, pages.count)
    domain.counters.add(.faultAroundPages, pages.count)
  }

  /// Claims pages one after the other, up to one that has broken away or must stay, and keeps what snapshots are owed of them. Pages that
  /// could be written in place are taken along: a copy too many is cheaper than a mapping. Never waits.
  private func claim(
    from start: Int, to limit: Int, by step: Int, _ domain: borrowing FaultDomain
  ) -> (end: Int, isBlocked: Bool) {
    var boundary = start
    while boundary != limit {
      let page = step > 0 ? boundary : boundary - 1
      let before = domain.table.tryClaim(page)
      if before.contains(.claimed) { return (boundary, true) }
      let stays = !before.isDisjoint(with: .openOrDenied)
      let moves = !stays && mayMove(page) && domain.mayTakeAlong(page)
      if moves, !before.contains(.told) { FirstWriteCallbacks.call(domain, page: page, opening: page..<page + 1) }
      if !moves || domain.withOwedBytes({ $0.keep(page..<page + 1, in: domain) }) == .held {
        domain.table.releaseClaim(page)
        return (boundary, false)
      }
      domain.table.remove(.told, at: page)
      boundary += step
    }
    return (boundary, false)
  }

  // MARK: Discarding

  override func leave(
    _ pages: Range<Int>, in domain: borrowing FaultDomain, _ invalidation: inout Invalidation?
  ) -> CInt {
    for page in pages { _ = domain.table.claim(page) }
    defer { for page in pages { domain.table.releaseClaim(page) } }
    var start = pages.lowerBound
    while start < pages.upperBound {
      let isShared = hasOthers(start)
      var end = start + 1
      let denied = domain.table[start].intersection(.denied)
      // One call each: it is done for all of them, or for none.
      let limit = unsafe min(pages.upperBound, frames.base.pointee.part(of: start).upperBound)
      while end < limit, hasOthers(end) == isShared, domain.table[end].intersection(.denied) == denied {
        end += 1
      }
      let result = isShared ? leave(start..<end, domain, &invalidation) : dropOwn(start..<end, &invalidation)
      if result != 0 { return result }
      start = end
    }
    return 0
  }

  /// Makes frames read as zeros while their pages are claimed: a fault beside them that takes them along into other frames would
  /// bring the bytes back. Through the file, which announces nothing, so that nobody has to read of it.
  private func dropOwn(_ pages: Range<Int>, _ invalidation: inout Invalidation?) -> CInt {
    invalidation?.invalidateRange(pages)
    return frames.punch(pages)
  }

  private func hasOthers(_ page: Int) -> Bool {
    let extent = unsafe frames.extent(of: page)
    // A frame that was taken since the region was last shared is its own, whoever has pinned it.
    if unsafe extent == frames.targetExtent { return false }
    let counts = unsafe extent.pointee.counts(page)
    return counts.mappings > 1 || counts.references > counts.mappings
  }

  private func leave(
    _ pages: Range<Int>, _ domain: borrowing FaultDomain, _ invalidation: inout Invalidation?
  ) -> CInt {
    guard let target = unsafe frames.targetExtent, unsafe frames.claimTarget(pages, target) else { return -11 }
    // What the frames held for somebody before may still be there.
    let punched = unsafe frames.pool.punch(target.pointee, pages)
    guard punched == 0 else {
      unsafe frames.unclaimTarget(pages, target)
      return punched
    }
    domain.needsRegistration.store(true, ordering: .sequentiallyConsistent)
    let range = domain.addresses(of: pages)
    // All have the same: a right may have been taken away since the discard began.
    let rights = domain.table[pages.lowerBound].rights
    domain.table.clear(pages)
    defer { domain.table.set(pages) }
    invalidation?.invalidateRange(pages)
    let result = unsafe frames.pool.map(pages, of: target.pointee, at: range.start, rights)
    guard result == 0 else {
      unsafe frames.unclaimTarget(pages, target)
      return result
    }
    _ = Memory.adviseResult(range, .dontFork)
    if domain.hasSeals { _ = Memory.adviseResult(range, .dontDump) }
    unsafe frames.move(pages, to: target)
    for page in pages { domain.table.insert(.open, at: page) }
    domain.table.open.insert(pages)
    FaultPath.wake(pages, in: domain)
    return 0
  }
}
