internal import Logging
internal import Synchronization

/// Letting pages be written, and what happens to who may not.
extension FilePages {
  func admitWrite(_ page: Int, in domain: borrowing FaultDomain) -> Admission {
    // Whoever waits faults again, and the page comes in first.
    if !present.contains(page) || refused.contains(page) { return .refused(.gone) }
    if filling.contains(page) { return .refused(.elsewhere) }
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
  func makeWritable(_ page: Int) {
    do throws(PinError) {
      try withGrant(page) {
        // What cannot be opened now, because a snapshot has no room or a collection runs, faults again and finds the grant.
        openGranted(page)
      }
      giveUp(page..<page + 1)
    } catch {
      refuse(page, error, .read)
    }
  }

  /// Opens a page that is locked. The wrprotect lock is the outer one of the two, so that it may only be tried.
  private func openGranted(_ page: Int) {
    Kernel.withSignalsBlocked { unsafe openGranted(page, protection.domain.pointee) }
  }

  private func openGranted(_ page: Int, _ domain: borrowing FaultDomain) {
    let begun = Kernel.now()
    repeat {
      if let hold = domain.lock.tryShared(),
        FaultPath.resolve(page: page, isAdmitted: true, in: domain, holding: hold) != .retry
      {
        return
      }
      Kernel.pause(nanoseconds: 20_000)
    } while Kernel.now() - begun < Self.shortWhile
  }

  /// In nanoseconds: how long an exclusive operation is waited for with a page locked.
  private static let shortWhile: UInt64 = 1_000_000

  /// Runs `body` with the page locked and the store's agreement.
  private func withGrant(_ page: Int, _ body: () -> Void) throws(PinError) {
    let extent = unsafe frames.extent(of: page)
    let patience = unsafe protection.domain.pointee.patience
    guard unsafe extent.pointee.lock(page, patience: patience) else {
      throw PinError(
        .timedOut, operation: "make page \(page) writable", range: pageAddresses(page),
        advice: "Somebody keeps its frame locked.")
    }
    defer { unsafe extent.pointee.unlock(page) }
    if !granted.contains(page) {
      try store.pageMakeWritable(page..<page + 1)
      granted.insert(page..<page + 1)
    }
    body()
  }

  /// The same for who does not fault.
  func grant(_ page: Int) throws(PinError) {
    while true {
      if granted.contains(page) || table[page].contains(.open) { return }
      if let error = refusals.withLock({ $0[page] }) { throw error }
      let isMine = shared { _, _ in
        _ = table.claim(page)
        defer { table.releaseClaim(page) }
        if filling.contains(page) || !present.contains(page) { return false }
        filling.insert(page..<page + 1)
        return true
      }
      guard isMine else {
        try bringIn(page..<page + 1)
        Kernel.pause(nanoseconds: 20_000)
        continue
      }
      defer { giveUp(page..<page + 1) }
      return try withGrant(page) {}
    }
  }

  func pageAddresses(_ page: Int) -> AddressRange {
    AddressRange(start: addresses.start + UInt(page * Memory.pageSize), count: Memory.pageSize)
  }

  // MARK: Refusing

  /// Gives whoever waits for `page`, which is marked as `filling`, an error: SIGBUS for an access, EFAULT for a system call. A little later
  /// the page is as before, and the next access asks the store again.
  func refuse(_ page: Int, _ error: PinError, _ access: Refusal) {
    let isFirst = refusals.withLock { list in
      list[page] = error
      return list.count == 1
    }
    refused.insert(page..<page + 1)
    // As if the program had no right: then the access becomes a signal, whichever way it came.
    _ = Memory.protect(pageAddresses(page), access == .none ? [] : .read)
    protection.handler.logger.error(
      "page \(page) of \(addresses) could not be \(access == .none ? "read" : "made writable"): \(error)")
    counters.add(.refusedPages)
    giveUp(page..<page + 1)
    if isFirst { protection.handler.everyTick { [self] in liftRefusals() } }
  }

  enum Refusal {
    /// It may not even be read.
    case none
    case read
  }

  /// Lets pages be tried again. By the watchdog, a few times a second, so that a device that failed is not asked for every access.
  private func liftRefusals() -> Bool {
    if isOver.load(ordering: .acquiring) { return false }
    return refusals.withLock { list in
      for page in list.keys {
        let entry = table[page]
        let rights: Mapping.Protection =
          entry.contains(.readDenied) ? [] : entry.contains(.writeDenied) ? .read : .readWrite
        _ = Memory.protect(pageAddresses(page), rights)
        refused.remove(page..<page + 1)
      }
      list = [:]
      return false
    }
  }
}

extension FilePages: PageSupply {
  func markDirty(_ pages: Range<Int>) { dirty.insertVisibly(pages) }
  func isDirty(_ page: Int) -> Bool { dirty.contains(page) }

  func prepare(_ pages: Range<Int>, toWrite: Bool) throws(PinError) {
    try bringIn(pages)
    guard toWrite else { return }
    for page in pages { try grant(page) }
  }
}
