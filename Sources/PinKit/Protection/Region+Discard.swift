internal import Synchronization
internal import SystemPackage

extension Region {
  /// Gives the memory of `pages` back: they read as zeros from now on. Trackers report them as written.
  ///
  /// Runs beside faults and writers; a write that races with it is either wiped out or survives whole.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.unmapped`, `.accessDenied` where pages are protected against writing, `.unsupported`
  ///   for a mapping of a file, `.wouldDeadlock` from a fault callback. Does not block on other faults.
  public func discard(_ pages: Range<Int>) throws(PinError) {
    let range = try addresses(of: pages)
    try requireOutsideFaultPath("discard")
    try enter("discard")
    defer { leave() }
    guard !pages.isEmpty else { return }
    guard backing.support.contains(.discard) else {
      throw PinError(
        .unsupported, operation: "discard", range: range,
        advice: "The bytes belong to a file; punch a hole in it, or use anonymous, pool or hugetlb memory.")
    }
    if table.hasDeniedPages, let page = pages.first(where: { !table[$0].isDisjoint(with: [.writeDenied, .readDenied]) }) {
      throw PinError(
        .accessDenied, operation: "discard", range: addressesUnchecked(of: page..<page + 1),
        advice: "protect(_:to:) took the right to write away from page \(page).")
    }
    // Before anything is decided: a clone that comes in between would share the frames that are dropped here.
    var isHeld = frames != nil
    if isHeld { _ = discarding.lockShared() }
    defer { if isHeld { discarding.unlockShared() } }
    guard let protection = attachments.find(RegionProtection.self) else {
      // A tracker may begin while the pages are dropped, and whatever it did to them is gone with them.
      defer { attachments.find(RegionProtection.self)?.recordDiscard(pages) }
      return try drop(range)
    }
    if !isHeld { _ = discarding.lockShared() }
    isHeld = true
    // The kernel may announce the removal through the userfaultfd and wait until a reader has read that, so the wrprotect lock may
    // not be held while pages are dropped.
    do throws(PinError) { try drop(range) } catch {
      // The kernel drops what lies before the piece that it refuses. A userfaultfd has been told exactly what that is; where there
      // is none, all of it may have changed.
      if unsafe protection.domain.pointee.delivery.load(ordering: .acquiring) == .mprotect {
        protection.recordDiscard(pages)
      }
      throw error
    }
    // After the fact: whoever collects from now on protects the fresh pages again and reports them.
    protection.recordDiscard(pages)
  }

  private func drop(_ range: AddressRange) throws(PinError) {
    guard frames != nil, let protection = attachments.find(RegionProtection.self) else { return try dropAlone(range) }
    // Frames that others have stay theirs: the pages leave them.
    if try !protection.leaveFrames(pages(touching: range)) { try dropAlone(range) }
  }

  private func dropAlone(_ range: AddressRange) throws(PinError) {
    // Shared pages live in a file: dropping their mapping would not drop them.
    do throws(PinError) {
      try Memory.advise(range, backing.isPrivateAnonymous ? .dontNeed : .remove)
    } catch  where error.errno == .invalidArgument && pageSize > Memory.pageSize {
      // A private mapping of huge pages has no file to punch a hole in.
      try Memory.advise(range, .dontNeed)
    }
  }
}
