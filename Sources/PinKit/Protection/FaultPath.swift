internal import Synchronization

/// What became of a fault.
enum FaultResolution: Sendable, Hashable {
  /// The page is open; whoever waited has been woken.
  case opened
  /// Somebody else opened it before; whoever waited has been woken.
  case alreadyOpen
  /// The kernel asks to try again later (EAGAIN): nothing has changed.
  case retry
  /// The memory is no longer registered, or protection has been lifted: the access can be tried again.
  case gone
  /// The user took the right to write away: the fault is the program's own.
  case denied
  /// It can never be resolved; the domain has been marked as failed.
  case failed
}

/// The one path that every write fault takes, on a reader thread or in the faulting thread.
///
///     fault ─► wrprotect lock, shared         (the caller's: a reader takes it once for a batch, before it reads)
///           ─► claim the page                 (one claimant; losers sleep, then find the page open)
///           ─► decide                         (open already? denied? how many neighbours?)
///           ─► tell first-write callbacks     (the page still holds the old bytes, and nobody can write it)
///           ─► unprotect, wake
///           ─► record the pages as open
///           ─► release the claims
///
/// The lock comes before the claim: it is the outer of the two in the lock order, and a loser that sleeps on a claim must know that
/// the winner has all it needs. A reader takes the lock before it *reads*, so a message can never be handled on the far side of
/// an exclusive operation from where it was queued: no page is reported that was not written.
///
/// Recording comes after unprotecting, so that a refusal leaves nothing to undo. A write that lands between the two is not lost:
/// whoever collects needs the lock exclusively.
///
/// Nothing here allocates, blocks on managed memory, or takes a lock that user code can hold (K2). First-write callbacks are
/// user code; their documentation forbids both.
enum FaultPath {
  static func resolve(
    page: Int, in domain: borrowing FaultDomain, holding: borrowing WriteProtectLock.SharedHold
  ) -> FaultResolution {
    let table = domain.table
    let before = table.claim(page)
    TestHooks.reach(.deciding, page: page)
    defer { table.releaseClaim(page) }

    if !before.isDisjoint(with: [.writeDenied, .readDenied]) { return .denied }
    let delivery = domain.delivery.load(ordering: .acquiring)
    if delivery == .none || delivery == .asynchronous { return .gone }
    if before.contains(.open) {
      // Somebody was faster. Unprotecting once more costs little, wakes whoever waits, and mends a page that could not be
      // protected again when it was collected.
      domain.counters.add(.alreadyOpen)
      let resolution = open(page..<page + 1, in: domain, delivery)
      return resolution == .opened ? .alreadyOpen : resolution
    }

    // A fault that is tried again has told its callbacks before.
    let isTold = before.contains(.told)
    let pages = page..<(isTold ? page + 1 : claimNeighbours(behind: page, in: domain))
    defer { for neighbour in pages.dropFirst() { table.releaseClaim(neighbour) } }

    if !isTold { FirstWriteCallbacks.call(domain, page: page, opening: pages) }

    let resolution = open(pages, in: domain, delivery)
    guard resolution == .opened else {
      if resolution == .retry { for page in pages { table.insert(.told, at: page) } }
      return resolution
    }
    if isTold { table.remove(.told, at: page) }
    TestHooks.reach(.unprotected, page: page)
    record(pages, faulted: page, in: domain)
    return .opened
  }

  /// Claims the pages behind `page` that the fault-around window covers, up to the first that is open, denied or somebody
  /// else's. Returns where they end.
  @inline(__always) private static func claimNeighbours(behind page: Int, in domain: borrowing FaultDomain) -> Int {
    let wanted = domain.faultAround.window(at: page)
    if wanted == 1 { return page + 1 }
    let end = min(page + wanted, domain.table.pageCount)
    var next = page + 1
    while next < end {
      let before = domain.table.tryClaim(next)
      if before.contains(.claimed) { break }
      if !before.isDisjoint(with: [.open, .writeDenied, .readDenied]) {
        domain.table.releaseClaim(next)
        break
      }
      next += 1
    }
    return next
  }

  /// Marks `pages` as open. The claims and the shared lock are held.
  @inline(__always) static func record(_ pages: Range<Int>, faulted: Int, in domain: borrowing FaultDomain) {
    for page in pages {
      domain.table.insert(page == faulted ? .open : [.open, .faultAround], at: page)
    }
    domain.table.open.insert(pages)
    domain.counters.add(.openedPages, pages.count)
    if pages.count > 1 { domain.counters.add(.faultAroundPages, pages.count - 1) }
  }

  /// Lets writes to `pages` through, and wakes who waits for them.
  private static func open(
    _ pages: Range<Int>, in domain: borrowing FaultDomain, _ delivery: FaultDelivery
  ) -> FaultResolution {
    let range = domain.addresses(of: pages)
    if delivery == .mprotect { return MprotectOpening.open(pages, in: domain) }
    let result = Uffd.unprotect(
      domain.descriptor.load(ordering: .acquiring), range, wake: delivery == .handlerThread)
    switch result {
    case .done: return .opened
    case .again:
      domain.counters.add(.retries)
      return .retry
    case .gone:
      // Lifting all protection ends here too; it wakes the waiters itself.
      if domain.delivery.load(ordering: .acquiring) == .none { return .gone }
      domain.fail(.mappingChanged, errno: result.errno)
    case .refused(UffdResult.badDescriptor) where domain.useSpareDescriptor():
      return open(pages, in: domain, delivery)
    case .refused(let errno):
      domain.fail(errno == UffdResult.badDescriptor ? .descriptorClosed : .refused, errno: errno)
    }
    return .failed
  }

  /// Lets the threads that wait for `pages` try their access again.
  static func wake(_ pages: Range<Int>, in domain: borrowing FaultDomain) {
    guard domain.delivery.load(ordering: .relaxed) == .handlerThread else { return }
    domain.counters.add(.wakes)
    let result = Uffd.wake(domain.descriptor.load(ordering: .acquiring), domain.addresses(of: pages))
    if result == .refused(errno: UffdResult.badDescriptor), domain.useSpareDescriptor() { wake(pages, in: domain) }
  }
}
