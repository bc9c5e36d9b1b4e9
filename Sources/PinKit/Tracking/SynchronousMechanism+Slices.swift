/// Most of the work before a moment, a slice at a time.
///
/// Each slice is a small collection: whoever writes a page of it afterwards finds it protected, opens it and puts it on record. So what is left
/// for the moment itself is what was opened since, however large the region is. Between slices the lock is free, which is fair: a fault
/// waits for a slice at most. Pages that are pinned for writing stay open until the moment (P8).
///
/// Not by mprotect, where every page that is opened again cuts the mapping once more; and not where pages are protected by not being
/// mapped, or come in protected, which is soon done.
extension SynchronousMechanism {
  private func hasSlices(_ domain: borrowing FaultDomain) -> Bool {
    kind != .mprotect && !domain.mayHaveHugeFrames && !domain.hasSource
  }

  // MARK: What is not protected yet

  /// Protects a region of which nothing is, all of which was told. False where that is not worth while, or was not come to its end: then
  /// nothing is to be relied on.
  ///
  /// - Parameter dropped: Gets the pages that are on record as dropped; what was open is nobody's.
  func protectAhead(_ told: RegionProtection.Told, _ dropped: inout DirtySet) throws(PinError) -> Bool {
    guard pageCount > protection.armingSlice.pages, unsafe hasSlices(protection.domain.pointee) else { return false }
    protection.exclusive { forgetAll($0, &dropped) }
    var (page, size) = (0, protection.armingSlice.pages)
    while page < pageCount {
      let slice = page..<min(pageCount, page + size)
      let begun = Kernel.now()
      let isDone = try hold(told, slice.upperBound) { domain throws(PinError) in try self.protectAhead(slice, domain) }
      if !isDone { return false }
      page = slice.upperBound
      size = protection.armingSlice.next(after: size, took: Kernel.now() - begun)
    }
    return true
  }

  /// Runs `body` under one hold of the lock until it returns true, and lets others have their turn. False if somebody has subscribed since it
  /// was told: then nothing was done.
  private func hold(
    _ told: RegionProtection.Told, _ end: Int, _ body: (borrowing FaultDomain) throws(PinError) -> Bool
  ) throws(PinError) -> Bool {
    var isCurrent = true
    try protection.untilDone { domain throws(PinError) in
      isCurrent = told.isCurrent(domain)
      return isCurrent ? try body(domain) : true
    }
    TestHooks.reach(.armedSlice, page: end)
    unsafe protection.domain.pointee.lock.giveWay()
    return isCurrent
  }

  private func protectAhead(_ slice: Range<Int>, _ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    var rest = DirtySet(pageCount: pageCount, runs: CollectionOfOne(slice))
    // Opened before they were protected: a pin would take them for open.
    domain.table.open.drain(slice) { Self.forget($0, domain.table) }
    let pinned = OpenPins.pages(in: domain, of: slice)
    if !pinned.isEmpty {
      // They may be unpinned before the moment, and are open.
      Self.putBack(pinned, domain.table)
      rest = rest.subtracting(pinned)
    }
    return try Self.protect(&rest, domain, kind)
  }

  // MARK: What was opened since the last time

  /// Goes through the record until little is left, or writers are as fast.
  func harvestAhead(_ told: RegionProtection.Told, _ taken: inout DirtySet) throws(PinError) {
    guard unsafe hasSlices(protection.domain.pointee) else { return }
    var before = Int.max
    while true {
      var found = DirtySet(pageCount: pageCount)
      // What was taken is somebody's, whatever comes.
      defer { taken.formUnion(found) }
      guard try harvestOnce(told, &found) else { return }
      let count = found.count
      if count > before / 2 || count == 0 { return }
      before = count
    }
  }

  /// One time through; false if nothing is to be gained any more.
  private func harvestOnce(_ told: RegionProtection.Told, _ found: inout DirtySet) throws(PinError) -> Bool {
    let slice = protection.armingSlice
    var start = 0
    // Without the lock: what is opened meanwhile, and missed, is left for the moment.
    while let (window, isLast) = unsafe protection.domain.pointee.table.open.window(
      from: start, pages: slice.pages, runs: slice.runs)
    {
      // The moment takes as much at once.
      if start == 0, isLast { return false }
      guard told.covers(window) else { return false }
      // Windows follow one on the other; what a try takes after another in the same need not.
      var taken = DirtySet(pageCount: pageCount)
      defer { found.append(taken) }
      let isDone = try hold(told, window.upperBound) { domain throws(PinError) in
        try self.harvest(in: window, &taken, domain, isMoment: false) { _ in }
      }
      if !isDone { return false }
      start = window.upperBound
    }
    return true
  }
}
