internal import Synchronization
internal import SystemPackage

extension Region {
  /// Pins pages in order, up to the first that cannot be.
  ///
  /// A pin for writing counts as a write: sharing is broken first, trackers report the pages, snapshots get their bytes. A pin for reading
  /// of a shared frame gives this region its own copy first where the reuse policy says so (``ReusePolicy/pinsBreakSharing``) or with
  /// ``PinOptions/unshare``, so that nobody can read through it what others write later (W3), and what the owner writes is what it
  /// reads (W4).
  ///
  /// After a pin for writing every page is its own, and open, and stays so while the pin lives, but for the moment in which a snapshot or a clone
  /// copies it. Of a region over a store, a sealed one, and one on huge frames only the pool's own mapping, whose bytes the pin has, stays
  /// usable: a collection or a flush may protect the page where the region maps it. With ``PinOptions/longTerm`` it is present, too, so that a driver can pin it (P8): ``register(_:for:with:)`` does both.
  ///
  /// Pages that are open, or of a region that nothing protects, are pinned with a few instructions each and no system call; the others are
  /// faulted in, under the wrprotect lock. Then it blocks while the region is being protected, while pages are dropped, and while a snapshot
  /// holds its writers, unless ``PinOptions/noWait`` or ``PinOptions/fast`` says otherwise.
  ///
  /// - Parameters:
  ///   - pages: Page indices, at least one.
  ///   - options: For reading, if empty.
  /// - Returns: A pin of all of them, or of fewer (``Pin/shortfall`` says why).
  /// - Throws: ``PinError``, if not even the first page could be pinned: `.wouldBlock`; `.limitReached` if it has 2047 pins for writing or 4095
  ///   for reading already; `.accessDenied` where ``protect(_:to:)`` took the right away; `.sealed`, `.tampered`, `.keyGone` of sealed pages; `.inaccessible`
  ///   with ``PinOptions/longTerm`` for writing, if any page of adopted memory has no bytes (K6); `.timedOut`, `.outOfMemory`. Whatever the pages:
  ///   `.needsDirtyTracking` (P1), `.unsupported` of secret memory and of a device's, `.invalidArgument`, `.outOfBounds`, `.unmapped`, `.notInherited`, `.handlerLost`, `.wouldDeadlock` from a
  ///   fault callback.
  public func pin(_ pages: Range<Int>, _ options: PinOptions = []) throws(PinError) -> Pin {
    if let pin = pinWithoutFault(pages, options, isWhole: false) { return pin }
    return try pinSlowly(pages, options)
  }

  /// `nil` where it takes more than a few instructions a page.
  @inline(__always) private func pinWithoutFault(_ pages: Range<Int>, _ options: PinOptions, isWhole: Bool) -> Pin? {
    guard pages.lowerBound >= 0, pages.upperBound <= table.pageCount, !pages.isEmpty, isOfThisProcess,
      options.rawValue & PinOptions.longTerm.rawValue == 0
    else { return nil }
    return pinAtOnce(pages, options, isWhole: isWhole)
  }

  /// Pins all of `pages` or none, as whoever hands them to a device must: what can be told beforehand is told before the first page is
  /// opened.
  ///
  /// - Throws: As ``pin(_:_:)``, for whichever page. Only where that could not be told is what came before it in the next dirty set.
  @inline(__always) func pinWhole(_ pages: Range<Int>, _ options: PinOptions) throws(PinError) -> Pin {
    if let pin = pinWithoutFault(pages, options, isWhole: true) { return pin }
    try requirePinnable(pages, options)
    let pin = try pinSlowly(pages, options)
    if let shortfall = pin.shortfall { throw shortfall }
    return pin
  }

  @inline(never) private func pinSlowly(_ pages: Range<Int>, _ options: PinOptions) throws(PinError) -> Pin {
    _ = try addresses(of: pages)
    guard !pages.isEmpty else { throw PinError(.invalidArgument, operation: "pin", advice: "The range of pages is empty.") }
    try requireOutsideFaultPath("pin")
    try enter("pin")
    defer { leave() }
    try requireAllowed(options)
    let protection = try pinProtection(mayWait: options.mayWait)
    var pieces: [PinDetail.Piece] = []
    var failure: PinError?
    do throws(PinError) {
      try pinInSteps(pages, options, protection, &pieces)
    } catch {
      failure = error
    }
    do throws(PinError) {
      if let first = pieces.first {
        if options.contains(.longTerm), options.isForWriting { try makePresent(pieces, options) }
        return try assemble(first.pages.lowerBound..<pieces[pieces.count - 1].pages.upperBound, options, pieces, failure)
      }
    } catch {
      for piece in pieces { memory.dropPins(piece.pages, forWriting: options.isForWriting, extent: piece.extent) }
      throw error
    }
    throw failure ?? PinError(.wouldBlock, operation: "pin", range: addressesUnchecked(of: pages))
  }

  /// Asked by whoever needs all of `pages` or none: what can be told before the first page is opened, which counts as written from then on.
  /// Brings pages of a store in, asks it whether they may be written, and opens sealed pages, as the pin does.
  ///
  /// - Throws: As ``pin(_:_:)``.
  func requirePinnable(_ pages: Range<Int>, _ options: PinOptions) throws(PinError) {
    _ = try addresses(of: pages)
    guard !pages.isEmpty else { throw PinError(.invalidArgument, operation: "pin", advice: "The range of pages is empty.") }
    try requireOutsideFaultPath("pin")
    try enter("pin")
    defer { leave() }
    try requireAllowed(options)
    try requireRights(pages, forWriting: options.isForWriting, "pin")
    for page in pages where !table.hasRoomForPin(page, forWriting: options.isForWriting) { throw .tooManyPins(self, page) }
    if let seals { try seals.requireOpenable(pages) }
    if case .adopted = backing.kind, options.contains(.longTerm), options.isForWriting { try requireAllBytes(pages) }
    if let supply { try supply.prepare(pages, toWrite: options.isForWriting) }
  }

  /// Whether there are bytes behind every one of `pages` of adopted memory.
  private func requireAllBytes(_ pages: Range<Int>) throws(PinError) {
    if Memory.adviseResult(addressesUnchecked(of: pages), .populateRead) == 0 { return }
    for page in pages { try requireBytes(page * pageSize, "pin") }
  }

  private func assemble(
    _ pages: Range<Int>, _ options: PinOptions, _ pieces: [PinDetail.Piece], _ failure: PinError?
  ) throws(PinError) -> Pin {
    if pieces.count == 1 {
      let detail = failure.map { PinDetail(pieces: [], shortfall: $0, alias: nil) }
      return Pin(self, pages, options, start: pieces[0].start, extent: pieces[0].extent, detail)
    }
    guard let frames else { preconditionFailure("pieces of memory that has no frames") }
    let alias = try frames.mapSideBySide(pieces, count: pages.count)
    let start = alias.range.start
    return Pin(
      self, pages, options, start: start, extent: 0, PinDetail(pieces: pieces, shortfall: failure, alias: alias))
  }

  /// Gives pages that are pinned and open memory: a driver that pins them can take it as it is, without a fault (P8).
  private func makePresent(_ pieces: [PinDetail.Piece], _ options: PinOptions) throws(PinError) {
    for piece in pieces {
      let range = AddressRange(start: piece.start, count: piece.pages.count * pageSize)
      let result = Memory.populate(range)
      if result == -Errno.badAddress.rawValue {
        for page in piece.pages { try makePresent(page, piece, options) }
      } else {
        try PinError.check(result, "madvise(populateWrite)", range)
      }
    }
  }

  /// A snapshot has just protected some pages, for as long as it copies them, or one has no bytes.
  private func makePresent(_ page: Int, _ piece: PinDetail.Piece, _ options: PinOptions) throws(PinError) {
    let range = AddressRange(start: piece.start + UInt((page - piece.pages.lowerBound) * pageSize), count: pageSize)
    var deadline = Deadline(seconds: space.configuration.patience)
    while true {
      let result = Memory.populate(range)
      if result != -Errno.badAddress.rawValue {
        try PinError.check(result, "madvise(populateWrite)", range)
        return
      }
      if !options.mayWait {
        try requireBytes(page * pageSize, "pin")
        return
      }
      try touchChecked(page)
      if deadline.isOver() {
        throw PinError(
          .timedOut, operation: "pin", errno: .badAddress, range: range,
          advice: "The page is protected again and again: by snapshots, or by other code.")
      }
    }
  }

  /// The region's protection, which pins look at without a lock from now on.
  private func pinProtection(mayWait: Bool) throws(PinError) -> RegionProtection {
    let protection = try protection()
    try protection.throwIfFailed("pin")
    if pinDomain.load(ordering: .acquiring) != 0 { return protection }
    // Under the lock: whoever holds it exclusively counts on nobody beginning to pin.
    let isNoted: Void? = Kernel.withSignalsBlocked {
      unsafe notePins(protection, protection.domain.pointee, mayWait: mayWait)
    }
    if isNoted == nil {
      throw PinError(.wouldBlock, operation: "pin", range: addresses, advice: "The region is being protected.")
    }
    return protection
  }

  private func notePins(
    _ protection: RegionProtection, _ domain: borrowing FaultDomain, mayWait: Bool
  ) -> Void? {
    let note = { (_: borrowing WriteProtectLock.SharedHold) in
      self.table.notePins()
      let raw = unsafe UInt(bitPattern: Unmanaged.passRetained(protection).toOpaque())
      let (isFirst, _) = self.pinProtection.compareExchange(expected: 0, desired: raw, ordering: .sequentiallyConsistent)
      if !isFirst { unsafe Unmanaged<RegionProtection>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!).release() }
      unsafe self.pinDomain.store(UInt(bitPattern: protection.domain), ordering: .sequentiallyConsistent)
    }
    return mayWait ? domain.lock.withShared(note) : domain.lock.withSharedIfFree(note)
  }
}

extension RegionFrames {
  /// Maps the frames of pieces that are in several extents as the pages are: one behind the other.
  fileprivate func mapSideBySide(_ pieces: [PinDetail.Piece], count: Int) throws(PinError) -> Mapping {
    let alias = try Mapping(count: count * Memory.pageSize)
    var at = alias.range.start
    for piece in pieces {
      let range = AddressRange(start: at, count: piece.pages.count * Memory.pageSize)
      let extent = unsafe Extent.Pointer(bitPattern: piece.extent)!
      try PinError.check(unsafe pool.map(piece.pages, of: extent.pointee, at: range.start), "mmap", range)
      at = range.end
    }
    try Memory.advise(alias.range, .dontFork)
    try Memory.advise(alias.range, .dontDump)
    return alias
  }
}
