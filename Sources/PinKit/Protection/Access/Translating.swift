internal import Synchronization

// How a secondary MMU asks the primary one for a translation.

extension RegionProtection {
  enum TranslationOutcome {
    /// Where the bytes are, until the next invalidation, and whether they may be written there.
    case found(address: UInt, isWritable: Bool)
    /// The page is changing; ask again in a moment.
    case notNow
    case denied
    /// The pool does not map the frame yet.
    case needsDirectMap(extent: UInt)
  }

  /// One try. For writing, the page is first made writable by a write fault, in which sharing is broken, what snapshots are owed is kept,
  /// and the page is recorded as written (N1).
  func translate(_ page: Int, forWriting: Bool) -> TranslationOutcome {
    Kernel.withSignalsBlocked { unsafe translate(page, forWriting: forWriting, domain.pointee) }
  }

  private func translate(
    _ page: Int, forWriting: Bool, _ domain: borrowing FaultDomain
  ) -> TranslationOutcome {
    domain.lock.withShared { hold in
      let table = domain.table
      var entry = table[page]
      if entry.contains(.readDenied) || (forWriting && entry.contains(.writeDenied)) { return .denied }
      if domain.isSealed(page) { return .notNow }
      if domain.hasSource, domain.withSource({ $0.isPresent(page) }) != true { return .notNow }
      var isWritable = !entry.contains(.writeDenied)
      switch domain.delivery.load(ordering: .acquiring) {
      case .none: break
      case .asynchronous:
        // The kernel sees writes through the region's own mapping only.
        if forWriting { table.discarded.insertVisibly(page) }
      case .handlerThread, .inPlace, .mprotect:
        if forWriting, !entry.contains(.open) {
          switch FaultPath.resolve(page: page, in: domain, holding: hold) {
          case .opened, .alreadyOpen: break
          case .denied: return .denied
          case .gone, .retry, .held, .elsewhere, .failed: return .notNow
          }
          entry = table[page]
        }
        isWritable = isWritable && entry.contains(.open)
      }
      // Between the two halves of a change of frame there is nothing to find (N5).
      if entry.contains(.cleared) || (forWriting && !isWritable) { return .notNow }
      return domain.withFrames { address(of: page, $0, isWritable) }
        ?? .found(address: domain.addresses.start + UInt(page * domain.pageSize), isWritable: isWritable)
    }
  }

  private func address(of page: Int, _ frames: RegionFrames, _ isWritable: Bool) -> TranslationOutcome {
    let extent = unsafe frames.extent(of: page)
    let direct = unsafe extent.pointee.directAddress.load(ordering: .acquiring)
    guard direct != 0 else { return .needsDirectMap(extent: UInt(bitPattern: extent)) }
    return .found(address: direct + UInt(page * Memory.pageSize), isWritable: isWritable)
  }

  /// Which frame a page has now, for who maps frames himself; after ``translate(_:forWriting:)`` and before the next invalidation.
  func frame(of page: Int) -> FramePlace? {
    unsafe domain.pointee.withFrames { frames in unsafe frames.extent(of: page).pointee.place(of: page) }
  }
}

extension Region {
  /// Where a page's bytes are for a device, and whether it may write there; waits while the page changes.
  ///
  /// - Throws: ``PinError``: `.accessDenied`, `.timedOut`, `.outOfMemory`, and what the region failed with.
  func translate(
    _ page: Int, forWriting: Bool, by protection: RegionProtection
  ) throws(PinError) -> (address: UInt, isWritable: Bool) {
    var deadline = Deadline(seconds: space.configuration.patience)
    var waits = false
    defer { if waits { LockOrder.didWait() } }
    while true {
      try protection.throwIfFailed("translate")
      try seals?.makeAccessible(page..<page + 1, insists: false)
      if let supply, !supply.isPresent(page) {
        try supply.prepare(page..<page + 1, toWrite: false)
      }
      switch protection.translate(page, forWriting: forWriting) {
      case .found(let address, let isWritable): return (address, isWritable)
      case .needsDirectMap(let extent):
        _ = unsafe try frames?.pool.directMap(Extent.Pointer(bitPattern: extent)!)
        continue
      case .denied:
        throw PinError(
          .accessDenied, operation: "translate", range: addressesUnchecked(of: page..<page + 1),
          advice: "protect(_:to:) took that right away from page \(page).")
      case .notNow: break
      }
      if deadline.isOver() {
        throw PinError(
          .timedOut, operation: "translate", range: addressesUnchecked(of: page..<page + 1),
          advice: "Memory is short, a snapshot is at its limit, or a subscriber keeps refusing.")
      }
      if !waits { LockOrder.willWait(for: "translate", place: LockPlace()) }
      waits = true
      Kernel.pause(nanoseconds: 20_000)
    }
  }
}
