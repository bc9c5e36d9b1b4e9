internal import Synchronization

/// Dropping pages that the store has.
extension FilePages {
  /// In pages: how many go in one exclusive section.
  private static let reclaimed = 512

  func reclaim(_ pages: Range<Int>) throws(PinError) -> Int {
    let parts = parts(of: candidates(pages))
    if parts.isEmpty { return 0 }
    var dropped = 0
    try protection.untilDone(.clear, in: parts) { domain, runs, invalidation throws(PinError) in
      // What went to other frames since would read as zeros once it is dropped.
      guard try RegionProtection.registerAgain(domain) else { return false }
      for run in runs { dropped += drop(run, domain, &invalidation) }
      return true
    }
    return dropped
  }

  /// Lists of runs, each of as many pages as go in one exclusive section.
  private func parts(of pages: DirtySet) -> [[Range<Int>]] {
    var parts: [[Range<Int>]] = []
    var room = 0
    for run in pages.runs {
      var start = run.lowerBound
      while start < run.upperBound {
        if room == 0 {
          parts.append([])
          room = Self.reclaimed
        }
        let part = start..<min(run.upperBound, start + room)
        parts[parts.count - 1].append(part)
        room -= part.count
        start = part.upperBound
      }
    }
    return parts
  }

  /// Those that may go as far as can be seen without a lock, and that nobody used lately.
  private func candidates(_ pages: Range<Int>) -> DirtySet {
    var found = DirtySet(pageCount: pageCount)
    for page in pages where mayGo(page) && !isYoung(page) { found.append(page..<page + 1) }
    return found
  }

  /// A page passes from one mark to another without a lock, and has both for a moment: what the store could not write, or not make durable, is dirty
  /// again before the other two go, and what is taken from a region that failed is unflushed before it is not dirty. So that one is looked at
  /// twice.
  private func mayGo(_ page: Int) -> Bool {
    guard stays.load(ordering: .sequentiallyConsistent) == 0, present.contains(page), !filling.contains(page),
      !dirty.contains(page), !writeback.contains(page), !unflushed.contains(page)
    else { return false }
    TestHooks.reach(.reclaiming, page: page)
    return !dirty.contains(page) && table[page].isDisjoint(with: .openOrTold) && !isPinned(page)
  }

  /// A subscriber's word counts for once: the next time the page must have been used again.
  private func isYoung(_ page: Int) -> Bool {
    unsafe protection.domain.pointee.withNotifications {
      $0.ask(page..<page + 1) { subscriber, pages, region in subscriber.clearYoung(pages, of: region) }
    } ?? false
  }

  /// Under the exclusive lock: nobody resolves a fault meanwhile, and whoever faults finds the page gone.
  private func drop(
    _ pages: Range<Int>, _ domain: borrowing FaultDomain, _ invalidation: inout Invalidation?
  ) -> Int {
    var dropped = 0
    var start = pages.lowerBound
    while start < pages.upperBound {
      let extent = unsafe frames.extent(of: start)
      var end = start
      // In one file: what of it is gone when something is refused is known.
      let limit = unsafe min(pages.upperBound, extent.pointee.part(of: start).upperBound)
      // One step for each frame, which fails if anybody holds it, also since a moment ago (P5).
      while end < limit, mayGo(end), unsafe frames.extent(of: end) == extent,
        unsafe extent.pointee.freeze(end, expecting: 1)
      { end += 1 }
      if start == end {
        start += 1
        continue
      }
      let run = start..<end
      start = end
      table.clear(run)
      TestHooks.reach(.cleared, page: run.lowerBound)
      invalidation?.invalidateRange(run)
      if unsafe frames.pool.punch(extent.pointee, run) == 0 {
        present.remove(run)
        placed.remove(run)
        granted.remove(run)
        dropped += run.count
      }
      table.set(run)
      for page in run { unsafe extent.pointee.unfreeze(page) }
    }
    counters.add(.reclaimedPages, dropped)
    return dropped
  }

  func isPinned(_ page: Int) -> Bool {
    if table[page].isPinned { return true }
    return unsafe frames.extent(of: page).pointee.counts(page).mayBePinned
  }
}

/// Keeping pages from being dropped.
extension FilePages {
  func keepPresent(_ pages: Range<Int>) throws(PinError) {
    stays.add(1, ordering: .sequentiallyConsistent)
    // One that had begun ends first.
    protection.exclusive { _ in }
    do throws(PinError) { try bringIn(pages) } catch {
      mayLeave()
      throw error
    }
  }
}
