internal import Synchronization

/// Opening pages by mprotect(2).
///
/// Every page that differs from its neighbours splits a VMA, and a process may have `vm.max_map_count` of them. At the limit
/// the kernel answers ENOMEM; then the page is opened together with more and more of its neighbours, which lets VMAs merge again. So it is
/// before, where ``MappingBudget`` is spent: as far as the next open page, if one is near. Neighbours opened that way are recorded as fault-around pages: the dirty set gets wider, it never gets wrong.
enum MprotectOpening {
  private static let noMemory: CInt = 12

  static func open(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    let cuts = cuts(by: pages, domain.table)
    if cuts > 0, MappingBudget.isSpent, merge(pages, in: domain) { return .opened }
    let result = Memory.protect(domain.addresses(of: pages), .readWrite)
    if result == 0 {
      note(cuts, domain)
      return .opened
    }
    if result == -noMemory { return widen(pages, in: domain) }
    domain.fail(.refused, errno: -result)
    return .failed
  }

  /// `pages` are claimed by this thread, and their callbacks told.
  private static func widen(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    let table = domain.table
    var reach = 64
    while true {
      let window = max(0, pages.lowerBound - reach)..<min(table.pageCount, pages.upperBound + reach)
      switch tryOpen(pages, within: window, isAhead: false, in: domain) {
      case .opened: return .opened
      case .held: return .held
      // Whoever has the page that stopped this thread will let go of it.
      case .refused(isBlocked: true): return .retry
      case .refused(isBlocked: false): break
      }
      if reach >= table.pageCount {
        // Between pages that others have, a copy can join what has broken away before.
        let resolution = domain.withSharing { $0.copyInstead(pages, in: domain) }
        if let resolution, resolution != .failed { return resolution }
        domain.fail(.refused, errno: noMemory)
        return .failed
      }
      reach *= 8
    }
  }

  private enum Attempt {
    case opened, held
    case refused(isBlocked: Bool)
  }

  /// Opens `pages`, which are claimed, with their neighbours in `window`.
  ///
  /// - Parameter isAhead: It can be done without: no snapshot is given up for the sake of neighbours, and nobody is held.
  private static func tryOpen(
    _ pages: Range<Int>, within window: Range<Int>, isAhead: Bool, in domain: borrowing FaultDomain
  ) -> Attempt {
    // Over two files mprotect(2) may do the first and refuse the second. Slices are nothing to it: where mappings are scarce only the whole of a
    // mapping needs no further one.
    let page = pages.lowerBound
    let window = domain.withFrames { unsafe window.clamped(to: $0.base.pointee.part(of: page)) } ?? window
    let low = claim(from: pages.lowerBound, to: window.lowerBound, by: -1, isAhead: isAhead, domain)
    let high = claim(from: pages.upperBound, to: window.upperBound, by: 1, isAhead: isAhead, domain)
    tell(low.end..<pages.lowerBound, domain)
    tell(pages.upperBound..<high.end, domain)
    let isKept =
      keep(low.end..<pages.lowerBound, isAhead: isAhead, domain)
      && keep(pages.upperBound..<high.end, isAhead: isAhead, domain)
    guard isKept else {
      settle(low.end..<pages.lowerBound, isOpen: false, domain)
      settle(pages.upperBound..<high.end, isOpen: false, domain)
      return .held
    }
    let cuts = cuts(by: low.end..<high.end, domain.table)
    let isOpen = Memory.protect(domain.addresses(of: low.end..<high.end), .readWrite) == 0
    settle(low.end..<pages.lowerBound, isOpen: isOpen, domain)
    settle(pages.upperBound..<high.end, isOpen: isOpen, domain)
    guard isOpen else { return .refused(isBlocked: low.isBlocked || high.isBlocked) }
    note(cuts, domain)
    domain.counters.add(.widenedOpenings)
    return .opened
  }

  /// Opens `pages` with what lies between them and the next open page, so that they are a mapping of their own no more; where none is near, with
  /// the block that they lie in, so that many faults to come need none. False if that cannot be done now.
  private static func merge(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> Bool {
    let table = domain.table
    // Without their claims: what is seen here says how far to reach, and each page is looked at again when it is claimed.
    var reach = 1
    while reach <= blockSize, pages.lowerBound >= reach || pages.upperBound + reach <= table.pageCount {
      if pages.lowerBound >= reach, table[pages.lowerBound - reach].contains(.open) { break }
      let above = pages.upperBound + reach - 1
      if above < table.pageCount, table[above].contains(.open) { break }
      reach += 1
    }
    // This may be a signal handler: what it does is bounded, however large the region is.
    let isNear = reach <= blockSize
    let low = isNear ? pages.lowerBound - max(leastReach, reach) : pages.lowerBound / blockSize * blockSize
    let high =
      isNear ? pages.upperBound + max(leastReach, reach) : (pages.upperBound + blockSize - 1) / blockSize * blockSize
    let window = max(0, low)..<min(table.pageCount, high)
    if case .opened = tryOpen(pages, within: window, isAhead: true, in: domain) { return true }
    return false
  }

  /// In pages: one fault that widens makes room for many that need not.
  private static let leastReach = 64
  /// In pages: how far is looked for an open one.
  private static let blockSize = 512

  /// How many mappings more there are once all of `pages` are open. Neighbours that others open meanwhile make it wrong by one or two, until
  /// the pages are protected again.
  private static func cuts(by pages: Range<Int>, _ table: PageTable) -> Int {
    let isOpenBelow = pages.lowerBound > 0 && table[pages.lowerBound - 1].contains(.open)
    let isOpenAbove = pages.upperBound < table.pageCount && table[pages.upperBound].contains(.open)
    var cuts = (isOpenBelow ? 0 : 1) + (isOpenAbove ? 0 : 1)
    var isOpen = isOpenBelow
    for page in pages where table[page].contains(.open) != isOpen {
      isOpen.toggle()
      cuts -= 1
    }
    return isOpen == isOpenAbove ? cuts : cuts - 1
  }

  private static func note(_ cuts: Int, _ domain: borrowing FaultDomain) {
    if cuts == 0 { return }
    domain.cuts.add(cuts, ordering: .relaxed)
    MappingBudget.add(cuts)
  }

  /// Claims pages one after the other, up to one that is denied, whose frame others have, or that somebody else is deciding on. Open
  /// pages are passed over without a claim: so of what was passed, the pages that are not open are this thread's, and what snapshots
  /// are owed of them is kept. Never waits.
  private static func claim(
    from start: Int, to limit: Int, by step: Int, isAhead: Bool, _ domain: borrowing FaultDomain
  ) -> (end: Int, isBlocked: Bool) {
    let table = domain.table
    var boundary = start
    while boundary != limit {
      let page = step > 0 ? boundary : boundary - 1
      let before = table.tryClaim(page)
      if !before.isDisjoint(with: .denied) {
        // Also where it is open: all up to the end gets the right to be written.
        if !before.contains(.claimed) { table.releaseClaim(page) }
        return (boundary, false)
      }
      if before.contains(.claimed) {
        if !before.contains(.open) { return (boundary, true) }
      } else if before.contains(.open) {
        table.releaseClaim(page)
      } else if !mayBeOpened(page, isTold: before.contains(.told), isAhead: isAhead, domain) {
        table.releaseClaim(page)
        return (boundary, false)
      }
      boundary += step
    }
    return (boundary, false)
  }

  /// Whether a claimed page may be written in place. Callbacks hear of it before its bytes are kept.
  private static func mayBeOpened(
    _ page: Int, isTold: Bool, isAhead: Bool, _ domain: borrowing FaultDomain
  ) -> Bool {
    let decision = domain.withSharing { $0.decide(page, among: page..<page + 1).decision } ?? .reuse
    guard decision == .reuse else { return false }
    guard domain.owed.load(ordering: .relaxed) != 0 else { return true }
    if !isTold {
      FirstWriteCallbacks.call(domain, page: page, opening: page..<page + 1)
      domain.table.noteTold(page)
    }
    return keepOwed(page..<page + 1, isAhead: isAhead, domain)
  }

  /// Tells the callbacks of the runs among `pages` that are this thread's and that they have not heard of.
  private static func tell(_ pages: Range<Int>, _ domain: borrowing FaultDomain) {
    var start = pages.lowerBound
    for page in pages.lowerBound...pages.upperBound {
      let isNew = page < pages.upperBound && domain.table[page].isDisjoint(with: .openOrTold)
      if isNew { continue }
      if start < page { FirstWriteCallbacks.call(domain, page: start, opening: start..<page) }
      start = page + 1
    }
  }

  /// Keeps what snapshots are owed of the pages among `pages` that are this thread's; false if there is no room.
  private static func keep(_ pages: Range<Int>, isAhead: Bool, _ domain: borrowing FaultDomain) -> Bool {
    guard domain.owed.load(ordering: .relaxed) != 0 else { return true }
    var start = pages.lowerBound
    for page in pages.lowerBound...pages.upperBound {
      if page < pages.upperBound, !domain.table[page].contains(.open) { continue }
      if start < page, !keepOwed(start..<page, isAhead: isAhead, domain) { return false }
      start = page + 1
    }
    return true
  }

  private static func keepOwed(_ pages: Range<Int>, isAhead: Bool, _ domain: borrowing FaultDomain) -> Bool {
    domain.withOwedBytes { isAhead ? $0.keepAhead(pages, in: domain) : $0.keep(pages, in: domain) } != .held
  }

  private static func settle(_ pages: Range<Int>, isOpen: Bool, _ domain: borrowing FaultDomain) {
    let table = domain.table
    for page in pages where !table[page].contains(.open) {
      if isOpen {
        table.remove(.told, at: page)
        table.insert(.openAround, at: page)
        table.open.insert(page..<page + 1)
        domain.counters.add(.openedPages)
        domain.counters.add(.faultAroundPages)
      } else {
        table.noteTold(page)
      }
      table.releaseClaim(page)
    }
  }
}
