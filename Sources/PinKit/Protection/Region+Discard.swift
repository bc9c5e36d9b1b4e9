internal import Synchronization
internal import SystemPackage

extension Region {
  /// Gives the memory of `pages` back: they read as zeros from now on. Trackers report them as written.
  ///
  /// Runs beside faults and writers; a write that races with it is either wiped out or survives whole.
  ///
  /// - Parameters:
  ///   - pages: Page indices.
  ///   - whilePinned: What to do if one of them is pinned (P4): to fail, unless given. `.leaveFrames` is for whole regions.
  /// - Throws: ``PinError``: `.pinned`, naming the pages, and nothing has changed; `.outOfBounds`, `.unmapped`, `.accessDenied` where pages are
  ///   protected against writing, `.unsupported` for a mapping of a file (also a private one of hugetlb memory) and for adopted shared memory
  ///   that is locked, `.wouldDeadlock` from a fault callback. Does not block on other faults, but waits as a writer does
  ///   where a snapshot holds writers.
  public func discard(_ pages: Range<Int>, whilePinned: PinnedPages = .fail) throws(PinError) {
    let range = try addresses(of: pages)
    try requireOutsideFaultPath("discard")
    try enter("discard")
    defer { leave() }
    guard !pages.isEmpty else { return }
    guard whilePinned != .leaveFrames else {
      throw PinError(
        .unsupported, operation: "discard", range: range, advice: ".leaveFrames is for whole regions; use .fail or .wait.")
    }
    try requireDiscardable(pages, range)
    try beginDrop(pages, "discard", whilePinned: whilePinned)
    defer { pinGate.endDrop() }
    while try !discardOnce(pages, range) {
      // A snapshot holds its writers until it has room; it may take others away with it when it closes.
      Kernel.pause(nanoseconds: 1_000_000)
    }
  }

  func requireDiscardable(_ pages: Range<Int>, _ range: AddressRange) throws(PinError) {
    guard backing.support.contains(.discard) else {
      throw PinError(
        .unsupported, operation: "discard", range: range,
        advice: "The bytes belong to a file; punch a hole in it, or use anonymous, pool or hugetlb memory.")
    }
    if table.hasDeniedPages, let page = pages.first(where: { !table[$0].isDisjoint(with: .denied) }) {
      throw PinError(
        .accessDenied, operation: "discard", range: addressesUnchecked(of: page..<page + 1),
        advice: "protect(_:to:) took the right to write away from page \(page).")
    }
  }

  /// False if a snapshot has no room for the bytes; nothing has changed then.
  private func discardOnce(_ pages: Range<Int>, _ range: AddressRange) throws(PinError) -> Bool {
    guard let protection = try protectionOrDrop(pages, range) else { return true }
    // The kernel may announce the removal through the userfaultfd and wait until a reader has read that, so the wrprotect lock may
    // not be held while pages are dropped.
    _ = discarding.lockShared()
    defer { discarding.unlockShared() }
    var invalidation = try protection.start(.clear, pages)
    defer { invalidation?.end() }
    return try protection.keeping(pages) { () throws(PinError) in try drop(pages, range, protection, &invalidation) }
  }

  /// The same without waiting for a subscriber; `discarding` and `unwatchedDiscards` are held shared.
  func tryDiscardNow(_ pages: Range<Int>, _ range: AddressRange) throws(PinError) -> Bool {
    guard let protection = attachments.find(RegionProtection.self) else {
      try drop(range)
      attachments.find(RegionProtection.self)?.recordDiscard(pages)
      return true
    }
    guard case .begun(var invalidation) = try protection.tryStart(.clear, pages) else { return false }
    defer { invalidation?.end() }
    return try protection.keeping(pages) { () throws(PinError) in try drop(pages, range, protection, &invalidation) }
  }

  /// Drops the pages if the region has no protection, and has had none since before; returns it otherwise.
  private func protectionOrDrop(_ pages: Range<Int>, _ range: AddressRange) throws(PinError) -> RegionProtection? {
    if let protection = attachments.find(RegionProtection.self) { return protection }
    _ = unwatchedDiscards.lockShared()
    defer { unwatchedDiscards.unlockShared() }
    if let protection = attachments.find(RegionProtection.self) { return protection }
    // A tracker may begin while the pages are dropped, and whatever it did to them is gone with them. A snapshot cannot.
    defer { attachments.find(RegionProtection.self)?.recordDiscard(pages) }
    TestHooks.reach(.dropping, page: pages.lowerBound)
    try drop(range)
    return nil
  }

  private func drop(
    _ pages: Range<Int>, _ range: AddressRange, _ protection: RegionProtection, _ invalidation: inout Invalidation?
  ) throws(PinError) {
    try seals?.forget(pages)
    let before = backing.isFileLike && frames == nil ? protection.discardedPages(in: pages) : nil
    do throws(PinError) { try drop(range, &invalidation) } catch {
      if frames == nil, Self.isUntouched(range, after: error) {
        // The kernel may have announced what it then did not do.
        if let before { protection.forgetDiscards(of: pages, butFor: before) }
        throw error
      }
      // The kernel drops what lies before the piece that it refuses. A userfaultfd has been told exactly what that is; where there
      // is none, all of it may have changed. Who begins to track after this look is owed nothing of before.
      if unsafe frames != nil || protection.domain.pointee.delivery.load(ordering: .acquiring) == .mprotect {
        protection.recordDiscard(pages)
      }
      throw error
    }
    // After the fact: whoever collects from now on protects the fresh pages again and reports them.
    protection.recordDiscard(pages)
  }

  /// Whether a refusal was of the first piece, so that nothing was dropped: of the one mapping there is, or of its one file, which is sealed.
  private static func isUntouched(_ range: AddressRange, after error: PinError) -> Bool {
    guard error.errno == .notPermitted || error.errno == .invalidArgument || error.errno == .permissionDenied,
      let mappings = try? ProcessMaps.mappings(in: range), let first = mappings.first
    else { return false }
    if mappings.count == 1 { return true }
    return error.errno == .notPermitted && mappings.allSatisfy { $0.inode == first.inode && $0.device == first.device }
  }

  private func drop(_ range: AddressRange) throws(PinError) {
    var nobody: Invalidation?
    try drop(range, &nobody)
  }

  private func drop(_ range: AddressRange, _ invalidation: inout Invalidation?) throws(PinError) {
    guard frames != nil, let protection = attachments.find(RegionProtection.self) else { return try dropAlone(range) }
    // Frames that others have stay theirs: the pages leave them.
    if try !protection.leaveFrames(pages(touching: range), &invalidation) { try dropAlone(range) }
  }

  private func dropAlone(_ range: AddressRange) throws(PinError) {
    // Through the pool's file, which the kernel does also where the mapping is locked.
    if let frames {
      try PinError.check(frames.punch(pages(touching: range)), "fallocate(PUNCH_HOLE)", range)
      return
    }
    // Shared pages live in a file: dropping their mapping would not drop them.
    do throws(PinError) {
      try Memory.advise(range, backing.isDroppedByUnmapping ? .dontNeed : .remove)
    } catch  where error.errno == .invalidArgument && pageSize > Memory.pageSize {
      // A private mapping of huge pages has no file to punch a hole in.
      try Memory.advise(range, .dontNeed)
    } catch  where error.errno == .invalidArgument && ProcessMaps.isLocked(range) {
      throw PinError(
        .unsupported, operation: "discard", errno: error.errno, range: range,
        advice:
          "The kernel frees no shared memory through a mapping that is locked: munlock(2) the range first, or punch a hole in its file."
      )
    }
  }
}
