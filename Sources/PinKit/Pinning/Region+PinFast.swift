internal import Synchronization

/// Pins without a lock, a claim or a system call, as the kernel's `gup_fast` does:
///
///     the number of exclusive operations so far, and that none runs
///     ─► one step on the page's entry: nobody is deciding on it, it may be accessed as it is ─► counted
///     ─► one step on the frame's word: it is this page's own ─► its references are taken
///     ─► the entry once more: nobody has begun to move the page before the frame said that it is pinned
///     ─► no exclusive operation has begun since, and nobody drops pages
///
/// An exclusive operation announces itself and then looks at the counts; a pin counts itself and then looks for the announcement. So one
/// of them sees the other. What was found to be wrong is taken back, and the pin is taken with the lock.
extension Region {
  /// `nil` if one of the pages cannot be pinned as it is. For who needs all or none, `isWhole`: what is counted is in the next set, also when
  /// it is taken back, so all are looked at before the first is counted.
  @inline(__always) func pinAtOnce(_ pages: Range<Int>, _ options: PinOptions, isWhole: Bool) -> Pin? {
    let raw = pinDomain.load(ordering: .acquiring)
    guard raw != 0, let domain = unsafe UnsafePointer<FaultDomain>(bitPattern: raw) else { return nil }
    return unsafe pinAtOnce(pages, options, isWhole: isWhole, domain.pointee)
  }

  @inline(__always) private func pinAtOnce(
    _ pages: Range<Int>, _ options: PinOptions, isWhole: Bool, _ domain: borrowing FaultDomain
  ) -> Pin? {
    let generation = domain.generation.load(ordering: .sequentiallyConsistent)
    let delivery = domain.delivery.load(ordering: .sequentiallyConsistent)
    // After the delivery, which a failure ends: a page of a region that failed is not taken for one that nothing protects. One that is not seen
    // yet is told by the next collection, or the next pin that takes the lock.
    guard !domain.lock.hasWriter, domain.failure.load(ordering: .acquiring) == 0 else { return nil }
    var extent: Extent.Pointer?
    var id: UInt64 = 0
    var start = addresses.start + UInt(pages.lowerBound * pageSize)
    if let frames = uncountedFrames {
      let (first, isBase) = unsafe frames.with { frames in
        let first = unsafe frames.extent(of: pages.lowerBound)
        return unsafe (first, first == frames.base)
      }
      let base = unsafe first.pointee.directAddress.load(ordering: .acquiring)
      if base == 0 { return nil }
      start = base + UInt(pages.lowerBound * pageSize)
      unsafe extent = first
      id = unsafe isBase ? 0 : UInt64(first.pointee.id)
    }
    let isForWriting = options.isForWriting
    let (refused, required) = Self.conditions(isForWriting, delivery)
    if isWhole, isForWriting, required == 0, pages.count > 1 {
      for page in pages {
        if table[page].rawValue & refused != 0 || !table.hasRoomForPin(page, forWriting: true) { return nil }
      }
    }
    TestHooks.reach(.pinning, page: pages.lowerBound)
    var end = pages.lowerBound
    while end < pages.upperBound {
      guard unsafe take(end, isForWriting, extent, id, refused, required) else { break }
      end += 1
    }
    let taken = pages.lowerBound..<end
    if !taken.isEmpty { table.pinned.insertVisibly(taken) }
    TestHooks.reach(.pinCounted, page: pages.lowerBound)
    guard end == pages.upperBound, unsafe stays(taken, extent, id), areThere(taken, domain), !pinGate.isDropping,
      !domain.lock.hasWriter,
      domain.generation.load(ordering: .sequentiallyConsistent) == generation
    else {
      memory.dropPins(taken, forWriting: options.isForWriting, extent: UInt(bitPattern: extent))
      return nil
    }
    return Pin(self, pages, options, start: start, extent: UInt(bitPattern: extent), nil)
  }

  /// Which bits of an entry must not, and which must be set.
  @inline(__always) private static func conditions(
    _ isForWriting: Bool, _ delivery: FaultDelivery
  ) -> (refused: UInt64, required: UInt64) {
    let busy = PageTable.Entry.claimedOrCleared.rawValue
    guard isForWriting else { return (busy | PageTable.Entry.readDenied.rawValue, 0) }
    let isUnprotected = delivery == .none || delivery == .asynchronous
    return (busy | PageTable.Entry.denied.rawValue, isUnprotected ? 0 : PageTable.Entry.open.rawValue)
  }

  @inline(__always) private func take(
    _ page: Int, _ isForWriting: Bool, _ extent: Extent.Pointer?, _ id: UInt64, _ refused: UInt64, _ required: UInt64
  ) -> Bool {
    guard let entry = table.addPin(page, forWriting: isForWriting, refused: refused, required: required) else {
      return false
    }
    guard let extent = unsafe extent else { return true }
    if entry.rawValue >> 32 == id, unsafe extent.pointee.tryPinOwn(page) { return true }
    table.pinned.insertVisibly(page)
    table.removePin(page, forWriting: isForWriting)
    return false
  }

  /// Whether nobody has begun to give one of the pages another frame before its own said that it was pinned.
  @inline(__always) private func stays(_ pages: Range<Int>, _ extent: Extent.Pointer?, _ id: UInt64) -> Bool {
    if unsafe extent == nil { return true }
    let busy = PageTable.Entry.claimedOrCleared.rawValue
    for page in pages {
      let entry = table.current(page).rawValue
      if entry & busy != 0 || entry >> 32 != id { return false }
    }
    return true
  }

  /// Whether pages of a store are in memory: one that is not must be brought in first.
  @inline(__always) private func areThere(_ pages: Range<Int>, _ domain: borrowing FaultDomain) -> Bool {
    if !domain.hasSource { return true }
    return domain.withSource { source in pages.allSatisfy(source.isPresent) } ?? true
  }
}
