internal import Logging
internal import Synchronization

/// Letting pages be written, and what happens to who may not.
extension FilePages {
  func admitWrite(_ page: Int, in domain: borrowing FaultDomain) -> Admission {
    if refused.contains(page) { return .refused(.gone) }
    if filling.contains(page) { return .refused(.elsewhere) }
    if !present.contains(page) {
      // Reclaimed a moment ago; or other code has dropped its mapping, and it is there and protected still: then no fault brings it in.
      filling.insert(page..<page + 1)
      if ask(.fill, page, page..<page + 1) { return .refused(.elsewhere) }
      filling.remove(page..<page + 1)
      return .refused(.gone)
    }
    if writeback.contains(page) { return .refused(.held) }
    let extent = unsafe frames.extent(of: page)
    guard unsafe extent.pointee.lock(page, patience: 0) else { return .refused(.retry) }
    if granted.contains(page) { return .admitted(UInt(bitPattern: extent)) }
    TestHooks.reach(.granting, page: page)
    if store.pageMakeWritableNow(page..<page + 1) {
      granted.insert(page..<page + 1)
      return .admitted(UInt(bitPattern: extent))
    }
    unsafe extent.pointee.unlock(page)
    filling.insert(page..<page + 1)
    if ask(.makeWritable, page, page..<page + 1) { return .refused(.elsewhere) }
    filling.remove(page..<page + 1)
    return .refused(.gone)
  }

  /// Asks the store, and makes the page writable if it agrees; the page is marked as `filling`.
  func makeWritable(_ page: Int, by worker: StoreWorker) {
    do throws(PinError) {
      try withGrant(page, by: worker) {
        // What cannot be opened now, because a snapshot has no room or a collection runs, faults again and finds the grant.
        openGranted(page, by: worker)
      }
      giveUp(page..<page + 1)
    } catch {
      refuse(page, error, .read)
    }
  }

  /// Opens a page that is locked. The wrprotect lock is the outer one of the two, so that it may only be tried.
  private func openGranted(_ page: Int, by worker: StoreWorker) {
    Kernel.withSignalsBlocked { unsafe openGranted(page, by: worker, protection.domain.pointee) }
  }

  private func openGranted(_ page: Int, by worker: StoreWorker, _ domain: borrowing FaultDomain) {
    let begun = Kernel.now()
    repeat {
      if let hold = domain.lock.tryShared() {
        worker.claims = page..<page + 1
        worker.isHolding = true
        defer { worker.isHolding = false }
        let resolution = FaultPath.resolve(
          page: page, isAdmitted: true, in: domain, holding: hold, noteClaims: { worker.claims = $0 })
        if resolution != .retry { return }
      }
      Kernel.pause(nanoseconds: 20_000)
    } while Kernel.now() - begun < Self.shortWhile
  }

  /// In nanoseconds: how long an exclusive operation is waited for with a page locked.
  private static let shortWhile: UInt64 = 1_000_000

  /// Runs `body` with the page locked and the store's agreement.
  private func withGrant(_ page: Int, by worker: StoreWorker? = nil, _ body: () -> Void) throws(PinError) {
    let extent = unsafe frames.extent(of: page)
    let patience = unsafe protection.domain.pointee.patience
    guard unsafe extent.pointee.lock(page, patience: patience) else {
      throw PinError(
        .timedOut, operation: "make page \(page) writable", range: pageAddresses(page),
        advice: "Somebody keeps its frame locked.")
    }
    worker?.hasLocked = true
    defer {
      worker?.hasLocked = false
      unsafe extent.pointee.unlock(page)
    }
    while !granted.contains(page) {
      // Whoever cleans the page while the store is asked takes the mark away: then it was asked for the last time's sake.
      granted.insert(page..<page + 1)
      do throws(PinError) { try store.pageMakeWritable(page..<page + 1) } catch {
        granted.remove(page..<page + 1)
        throw error
      }
    }
    body()
  }

  /// The same for who does not fault. A page that is cleaned right after takes a fault, which asks again.
  func grant(_ page: Int) throws(PinError) {
    while true {
      if !filling.contains(page), granted.contains(page) || table[page].contains(.open) { return }
      if let error = refusals.withLock({ $0[page] }) { throw error }
      if try Kernel.withSignalsBlocked({ () throws(PinError) in try grantAlone(page) }) { return }
      try bringIn(page..<page + 1)
      Kernel.pause(nanoseconds: 20_000)
    }
  }

  /// False if somebody else is at the page, or it is not there.
  private func grantAlone(_ page: Int) throws(PinError) -> Bool {
    let isMine = shared { _ in
      _ = table.claim(page)
      defer { table.releaseClaim(page) }
      if filling.contains(page) || !present.contains(page) { return false }
      filling.insert(page..<page + 1)
      return true
    }
    if !isMine { return false }
    defer { giveUp(page..<page + 1) }
    try withGrant(page) {}
    return true
  }

  func pageAddresses(_ page: Int) -> AddressRange {
    AddressRange(start: addresses.start + UInt(page * Memory.pageSize), count: Memory.pageSize)
  }
}

extension FilePages: PageSupply {
  func markDirty(_ pages: Range<Int>) { dirty.insertVisibly(pages) }
  func isDirty(_ page: Int) -> Bool { dirty.contains(page) || isPinnedForWriting(page) }

  /// Whether the store has all bytes of the page, and for good. The first mark is looked at twice, as a page may get it back.
  func isClean(_ page: Int) -> Bool {
    !isDirty(page) && !unflushed.contains(page) && !writeback.contains(page) && !dirty.contains(page)
  }

  func prepare(_ pages: Range<Int>, toWrite: Bool) throws(PinError) {
    try bringIn(pages)
    guard toWrite else { return }
    for page in pages { try grant(page) }
  }
}
