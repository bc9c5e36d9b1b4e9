internal import Synchronization

/// Leaving a shared frame for the sake of a reader (P10), as the kernel's `FAULT_FLAG_UNSHARE` does: the page gets a frame of its own, and
/// is as protected there as before.
///
/// A fresh mapping is not registered with the userfaultfd yet, so that for a moment a write would go through unseen. Where a signal handler
/// of PinKit's waits anyway, the page is mapped read-only for so long, and a writer comes back when all is done. Elsewhere its
/// bytes are compared with those of the old frame afterwards: nobody writes that one.
extension SharedFrames {
  func unshareAlone(_ page: Int, in domain: borrowing FaultDomain) -> Unsharing {
    let pages = page..<page + 1
    guard RegionFrames.pieces.load(ordering: .relaxed) <= pieceBudget else { return .failed }
    let stays = domain.delivery.load(ordering: .acquiring) == .mprotect || domain.table[page].contains(.writeDenied)
    let waits = domain.delivery.load(ordering: .acquiring) == .inPlace || domain.hasSource || domain.hasSeals
    guard let target = unsafe frames.targetExtent else { return .retry }
    let place = unsafe target.pointee.place(of: page)
    let file = frames.pool.descriptor(of: place)
    guard file >= 0 else {
      domain.fail(.poolClosed, errno: UffdResult.badDescriptor)
      return .failed
    }
    guard unsafe stays || waits || isComparable(page, target),
      unsafe frames.claimTarget(pages, target)
    else { return .retry }
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
      return .retry
    }
    TestHooks.reach(.copied, page: page)
    if invalidation != nil { domain.table.clear(pages) }
    defer { if invalidation != nil { domain.table.set(pages) } }
    invalidation?.invalidateRange()
    let range = domain.addresses(of: pages)
    guard Memory.replace(range, file: file, offset: place.offset, stays || waits ? .read : .readWrite) == 0
    else {
      unsafe frames.unclaimTarget(pages, target)
      return .failed
    }
    if domain.copyError.load(ordering: .relaxed) != 0 { domain.copyError.store(0, ordering: .relaxed) }
    TestHooks.reach(.mapped, page: page)
    _ = Memory.adviseResult(range, .dontFork)
    if domain.hasSeals { _ = Memory.adviseResult(range, .dontDump) }
    var isProtected = protect(range, in: domain)
    if !stays, waits, Memory.protect(range, .readWrite) != 0 { isProtected = false }
    if isProtected, !stays, !waits, unsafe !hasSameBytes(page, target) {
      isProtected = false
      _ = domain.unprotect(range, wake: true)
    }
    unsafe note(pages, target, domain)
    unsafe frames.move(pages, to: target)
    // Nobody may write it: it is protected when the right to comes back.
    return isProtected || stays ? .done : .written
  }

  /// Has the first write to a mapping that has just been made trap; false if it cannot be had.
  private func protect(_ range: AddressRange, in domain: borrowing FaultDomain) -> Bool {
    if domain.delivery.load(ordering: .acquiring) == .mprotect { return true }
    guard domain.register(range, RegionProtection.traps(domain)) == .done, domain.protect(range) == .done
    else {
      domain.needsRegistration.store(true, ordering: .sequentiallyConsistent)
      return false
    }
    return true
  }

  /// Whether the pool maps both frames. A clone that was made since whoever pins has seen to that brought another target: then it comes again.
  private func isComparable(_ page: Int, _ target: Extent.Pointer) -> Bool {
    unsafe frames.extent(of: page).pointee.directAddress.load(ordering: .acquiring) != 0
      && target.pointee.directAddress.load(ordering: .acquiring) != 0
  }

  /// Whether the page's frame, which it is about to leave, and its frame in the target hold the same.
  private func hasSameBytes(_ page: Int, _ target: Extent.Pointer) -> Bool {
    let old = unsafe frames.extent(of: page).pointee.directAddress.load(ordering: .acquiring)
    let new = unsafe target.pointee.directAddress.load(ordering: .acquiring)
    let offset = UInt(page * Memory.pageSize)
    guard old != 0, new != 0, let before = unsafe UnsafePointer<UInt64>(bitPattern: old + offset),
      let after = unsafe UnsafePointer<UInt64>(bitPattern: new + offset)
    else { return false }
    for word in 0..<Memory.pageSize / 8 where unsafe before[word] != after[word] { return false }
    return true
  }
}
