internal import Synchronization

extension FaultPath {
  /// Gives a page a frame of its own for a pin that reads (P10). It is not opened: nothing is on record, no callback hears of it, and it takes
  /// no right to write. Not a fault: the caller's thread is a program's own.
  ///
  /// - Returns: `.opened` or `.alreadyOpen` if the page may be pinned as it is.
  static func unshare(
    page: Int, waits: Bool, in domain: borrowing FaultDomain, holding hold: borrowing WriteProtectLock.SharedHold
  ) -> FaultResolution {
    let table = domain.table
    let before = waits ? table.claim(page) : table.tryClaim(page)
    if !waits, before.contains(.claimed) { return .retry }
    let resolution = unshare(page, before, in: domain)
    table.releaseClaim(page)
    guard resolution == .failed else { return resolution }
    // There is no mapping left for a page alone, and only who may write takes others along.
    return before.contains(.writeDenied) ? .retry : resolve(page: page, waits: waits, in: domain, holding: hold)
  }

  private static func unshare(
    _ page: Int, _ before: PageTable.Entry, in domain: borrowing FaultDomain
  ) -> FaultResolution {
    if before.contains(.readDenied) { return .denied }
    let delivery = domain.delivery.load(ordering: .acquiring)
    if delivery == .none || delivery == .asynchronous { return .gone }
    if before.contains(.open) { return .alreadyOpen }
    if domain.isSealed(page) { return .held }
    let isAway = domain.withSource { !$0.isPresent(page) || $0.isUnderWriteback(page) }
    if isAway == true { return .retry }
    let alone = page..<page + 1
    switch domain.withSharing({ $0.decide(page, among: alone).decision }) ?? .reuse {
    case .retry: return .retry
    case .reuse: return .alreadyOpen
    case .copy: break
    }
    // For the one case in which it turns out to have been written; by mprotect, or without the right to, it is not.
    if delivery != .mprotect, !before.contains(.writeDenied),
      domain.withOwedBytes({ $0.keepAhead(alone, in: domain) }) == .held,
      domain.withOwedBytes({ $0.keep(alone, in: domain) }) == .held
    {
      return .held
    }
    switch domain.withSharing({ $0.unshare(page, in: domain) }) ?? .failed {
    case .done: break
    case .written:
      if domain.hasSource { domain.withSource { $0.willOpen(alone) } }
      if !before.contains(.told) { FirstWriteCallbacks.call(domain, page: page, opening: alone) }
      domain.table.remove(.told, at: page)
      record(alone, faulted: page, in: domain)
    case .retry: return .retry
    case .failed: return .failed
    }
    wake(alone, in: domain)
    return .opened
  }
}
