/// Opening pages by mprotect(2).
///
/// Every page that differs from its neighbours splits a VMA, and a process may have `vm.max_map_count` of them. At the limit
/// the kernel answers ENOMEM; then the page is opened together with more and more of its neighbours, which lets VMAs merge again.
/// Neighbours opened that way are recorded as fault-around pages: the dirty set gets wider, it never gets wrong.
enum MprotectOpening {
  private static let noMemory: CInt = 12

  static func open(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    let result = Memory.protect(domain.addresses(of: pages), [.read, .write])
    if result == 0 { return .opened }
    if result == -noMemory { return widen(pages, in: domain) }
    domain.fail(.refused, errno: -result)
    return .failed
  }

  private static func widen(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> FaultResolution {
    var reach = 64
    while true {
      let low = allowed(from: pages.lowerBound, down: max(0, pages.lowerBound - reach), in: domain)
      let high = allowed(from: pages.upperBound, up: min(domain.table.pageCount, pages.upperBound + reach), in: domain)
      let wide = low..<high
      FirstWriteCallbacks.call(domain, page: pages.lowerBound, opening: wide)
      if Memory.protect(domain.addresses(of: wide), [.read, .write]) == 0 {
        domain.counters.add(.widenedOpenings)
        recordNeighbours(low..<pages.lowerBound, in: domain)
        recordNeighbours(pages.upperBound..<high, in: domain)
        return .opened
      }
      if reach >= domain.table.pageCount {
        domain.fail(.refused, errno: noMemory)
        return .failed
      }
      reach *= 8
    }
  }

  /// Neighbours that somebody else has claimed are recorded all the same: both mark them open, and both are right.
  private static func recordNeighbours(_ pages: Range<Int>, in domain: borrowing FaultDomain) {
    for page in pages where !domain.table[page].contains(.open) {
      domain.table.insert([.open, .faultAround], at: page)
      domain.table.open.insert(page..<page + 1)
      domain.counters.add(.openedPages)
      domain.counters.add(.faultAroundPages)
    }
  }

  private static func allowed(from start: Int, down end: Int, in domain: borrowing FaultDomain) -> Int {
    var page = start
    while page > end, domain.table[page - 1].isDisjoint(with: [.writeDenied, .readDenied]) { page -= 1 }
    return page
  }

  private static func allowed(from start: Int, up end: Int, in domain: borrowing FaultDomain) -> Int {
    var page = start
    while page < end, domain.table[page].isDisjoint(with: [.writeDenied, .readDenied]) { page += 1 }
    return page
  }
}
