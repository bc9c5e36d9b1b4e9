internal import Synchronization

// How the fault path makes pages writable, and readable.

extension FaultPath {
  static func copy(
    _ pages: Range<Int>, in domain: borrowing FaultDomain, _ delivery: FaultDelivery
  ) -> FaultResolution {
    let resolution = domain.withSharing { $0.copy(pages, in: domain) } ?? .failed
    if resolution == .opened { wake(pages, in: domain) }
    return resolution
  }

  /// A page that went to another frame is not registered with the userfaultfd: there is nothing to unprotect, only to wake.
  static func openAgain(
    _ page: Int, in domain: borrowing FaultDomain, _ delivery: FaultDelivery
  ) -> FaultResolution {
    if delivery != .mprotect, domain.needsRegistration.load(ordering: .relaxed) {
      let range = domain.addresses(of: page..<page + 1)
      if domain.hasMinorFaults.load(ordering: .relaxed), let refusal = mapForWriting(page, in: domain) { return refusal }
      wake(page..<page + 1, in: domain)
      _ = domain.unprotect(range, wake: true)
      return .opened
    }
    return open(page..<page + 1, faulted: page, in: domain, delivery)
  }

  /// Marks `pages` as open. The claims and the shared lock are held.
  @inline(__always) static func record(_ pages: Range<Int>, faulted: Int, in domain: borrowing FaultDomain) {
    var opened = 0
    var around = 0
    // What was open before is known to have been written, or not, as it was.
    for page in pages where !domain.table[page].contains(.open) {
      domain.table.insert(page == faulted ? .open : .openAround, at: page)
      opened += 1
      if page != faulted { around += 1 }
    }
    domain.table.open.insert(pages)
    domain.counters.add(.openedPages, opened)
    if around > 0 { domain.counters.add(.faultAroundPages, around) }
  }

  /// Lets writes to `pages` through, and wakes who waits for them.
  static func open(
    _ pages: Range<Int>, faulted: Int, in domain: borrowing FaultDomain, _ delivery: FaultDelivery
  ) -> FaultResolution {
    let range = domain.addresses(of: pages)
    if delivery == .mprotect { return MprotectOpening.open(pages, in: domain) }
    if domain.hasSource { domain.withSource { $0.willOpen(pages) } }
    if domain.hasMinorFaults.load(ordering: .relaxed), let refusal = mapForWriting(faulted, in: domain) { return refusal }
    let result = domain.unprotect(range, wake: delivery == .handlerThread)
    switch result {
    case .done: return .opened
    case .again:
      domain.counters.add(.retries)
      return .retry
    case .gone:
      // Lifting all protection ends here too; it wakes the waiters itself.
      if domain.delivery.load(ordering: .acquiring) == .none { return .gone }
      domain.fail(.mappingChanged, errno: result.errno)
    case .refused(let errno):
      domain.fail(errno == UffdResult.badDescriptor ? .descriptorClosed : .refused, errno: errno)
    }
    return .failed
  }

  /// Maps a page that is there and not mapped, so that there is an entry to unprotect. Neighbours that are not mapped trap once more,
  /// and are found open then. `nil` if all went well; whatever is wrong otherwise, unprotecting finds it too.
  private static func mapForWriting(_ page: Int, in domain: borrowing FaultDomain) -> FaultResolution? {
    let range = domain.addresses(of: page..<page + 1)
    let (result, _) = domain.mapExisting(range)
    guard result == .again else { return nil }
    domain.counters.add(.retries)
    return .retry
  }

  /// How many pages are mapped for one that is read, where pages are protected by not being mapped.
  private static let readAround = 16

  /// Maps pages that are there but not mapped, protected, for whoever reads them. `page` is claimed. Its neighbours are mapped if that is
  /// possible; if it cannot be mapped itself although it is there, its reader would fault for ever.
  static func mapForReading(_ page: Int, in domain: borrowing FaultDomain) -> FaultResolution {
    let limit = min((page & ~(readAround - 1)) + readAround, domain.table.pageCount)
    var end = page + 1
    while end < limit {
      let before = domain.table.tryClaim(end)
      if before.contains(.claimed) { break }
      if before.contains(.open) || domain.isSealed(end) {
        domain.table.releaseClaim(end)
        break
      }
      end += 1
    }
    defer { for other in page + 1..<end { domain.table.releaseClaim(other) } }
    var rest = domain.addresses(of: page..<end)
    let all = rest
    var step = rest.count
    while !rest.isEmpty {
      let next = AddressRange(start: rest.start, count: min(step, rest.count))
      let (result, bytes) = domain.mapExisting(next)
      switch result {
      case .done: rest = AddressRange(start: rest.start + UInt(bytes), end: rest.end)
      case .again: return .retry
      case .refused(UffdResult.badDescriptor):
        domain.fail(.descriptorClosed, errno: result.errno)
        return .failed
      // One call maps within one mapping, and pages that went to other frames have mappings of their own.
      case .gone where step > Memory.pageSize, .refused where step > Memory.pageSize: step = Memory.pageSize
      case .refused(let errno) where next.start == all.start && errno != UffdResult.noPage:
        domain.fail(.refused, errno: errno)
        return .failed
      default: rest = AddressRange(start: next.end, end: rest.end)
      }
    }
    domain.withSeals { $0.noteUse(page..<end) }
    wake(page..<end, in: domain)
    return .opened
  }

  /// Lets the threads that wait for `pages` try their access again.
  static func wake(_ pages: Range<Int>, in domain: borrowing FaultDomain) {
    // Without a delivery as well: a reader that comes by chance while the region is being connected has read of the fault, and nobody else will.
    let delivery = domain.delivery.load(ordering: .relaxed)
    guard delivery == .handlerThread || (delivery == .none && domain.isConnected) else { return }
    domain.counters.add(.wakes)
    domain.wake(domain.addresses(of: pages))
  }
}
