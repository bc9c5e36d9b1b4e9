internal import Synchronization

/// Opening pages by mprotect(2).
///
/// Every page that differs from its neighbours splits a VMA, and a process may have `vm.max_map_count` of them. At the limit
/// the kernel answers ENOMEM; then the page is opened together with more and more of its neighbours, which lets VMAs merge again.
/// Neighbours opened that way are recorded as fault-around pages: the dirty set gets wider, it never gets wrong.
enum MprotectOpening {
  private static let noMemory: CInt = 12

  static func open(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    let result = Memory.protect(domain.addresses(of: pages), .readWrite)
    if result == 0 { return .opened }
    if result == -noMemory { return widen(pages, in: domain) }
    domain.fail(.refused, errno: -result)
    return .failed
  }

  /// `pages` are claimed by this thread, and their callbacks told.
  private static func widen(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    let table = domain.table
    var reach = 64
    while true {
      let low = claim(from: pages.lowerBound, to: max(0, pages.lowerBound - reach), by: -1, domain)
      let high = claim(from: pages.upperBound, to: min(table.pageCount, pages.upperBound + reach), by: 1, domain)
      tell(low.end..<pages.lowerBound, domain)
      tell(pages.upperBound..<high.end, domain)
      let isKept = keep(low.end..<pages.lowerBound, domain) && keep(pages.upperBound..<high.end, domain)
      guard isKept else {
        settle(low.end..<pages.lowerBound, isOpen: false, domain)
        settle(pages.upperBound..<high.end, isOpen: false, domain)
        return .held
      }
      let isOpen = Memory.protect(domain.addresses(of: low.end..<high.end), .readWrite) == 0
      settle(low.end..<pages.lowerBound, isOpen: isOpen, domain)
      settle(pages.upperBound..<high.end, isOpen: isOpen, domain)
      if isOpen {
        domain.counters.add(.widenedOpenings)
        return .opened
      }
      // Whoever has the page that stopped this thread will let go of it.
      if low.isBlocked || high.isBlocked { return .retry }
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

  /// Claims pages one after the other, up to one that is denied, whose frame others have, or that somebody else is deciding on. Open
  /// pages are passed over without a claim: so of what was passed, the pages that are not open are this thread's, and what snapshots
  /// are owed of them is kept. Never waits.
  private static func claim(
    from start: Int, to limit: Int, by step: Int, _ domain: borrowing FaultDomain
  ) -> (end: Int, isBlocked: Bool) {
    let table = domain.table
    var boundary = start
    while boundary != limit {
      let page = step > 0 ? boundary : boundary - 1
      let before = table.tryClaim(page)
      if before.contains(.claimed) {
        if !before.contains(.open) { return (boundary, true) }
      } else if !before.isDisjoint(with: .openOrDenied) {
        table.releaseClaim(page)
        if !before.contains(.open) { return (boundary, false) }
      } else if !mayBeOpened(page, isTold: before.contains(.told), domain) {
        table.releaseClaim(page)
        return (boundary, false)
      }
      boundary += step
    }
    return (boundary, false)
  }

  /// Whether a claimed page may be written in place. Callbacks hear of it before its bytes are kept.
  private static func mayBeOpened(_ page: Int, isTold: Bool, _ domain: borrowing FaultDomain) -> Bool {
    let decision = domain.withSharing { $0.decide(page, among: page..<page + 1).decision } ?? .reuse
    guard decision == .reuse else { return false }
    guard domain.owed.load(ordering: .relaxed) != 0 else { return true }
    if !isTold {
      FirstWriteCallbacks.call(domain, page: page, opening: page..<page + 1)
      domain.table.noteTold(page)
    }
    return domain.withOwedBytes { $0.keep(page..<page + 1, in: domain) } != .held
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
  private static func keep(_ pages: Range<Int>, _ domain: borrowing FaultDomain) -> Bool {
    guard domain.owed.load(ordering: .relaxed) != 0 else { return true }
    var start = pages.lowerBound
    for page in pages.lowerBound...pages.upperBound {
      if page < pages.upperBound, !domain.table[page].contains(.open) { continue }
      if start < page, domain.withOwedBytes({ $0.keep(start..<page, in: domain) }) == .held { return false }
      start = page + 1
    }
    return true
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
