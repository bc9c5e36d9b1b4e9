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
  /// There is no room for what the page holds now: the writer waits until there is.
  case held
  /// Another thread goes on with it, and wakes whoever waits.
  case elsewhere
  /// It can never be resolved; the domain has been marked as failed.
  case failed
}

/// The one path that every write fault takes, on a reader thread or in the faulting thread.
///
///     fault ─► wrprotect lock, shared         (the caller's: a reader takes it once for a batch, before it reads)
///           ─► claim the page                 (one claimant; losers sleep, then find the page open)
///           ─► open it, if it is sealed        (S1)
///           ─► ask its store, if it has one   (the page locked: N3; a page that is not there comes from the store first)
///           ─► decide                         (open already? denied? frame shared? how many neighbours?)
///           ─► tell first-write callbacks     (the page still holds the old bytes, and nobody can write it)
///           ─► keep what snapshots are owed   (or hold the writer)
///           ─► act: reuse the frame, or copy  (a copy maps other frames in the pages' place)
///           ─► unprotect, wake              (the page first, where a thread copies many neighbours that have time)
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
  /// - Parameters:
  ///   - isWrite: False only for pages that are protected by not being mapped (minor faults): those may be read at any time.
  ///   - noteClaims: Told of the pages that are claimed, before anything is done about them, and when there are fewer.
  ///   - noteOpen: Told when the page is open, if its neighbours take a while longer.
  static func resolve(
    page: Int, isWrite: Bool = true, isAdmitted: Bool = false, waits: Bool = true, in domain: borrowing FaultDomain,
    holding: borrowing WriteProtectLock.SharedHold, noteClaims: (Range<Int>) -> Void = { _ in }, noteOpen: () -> Void = {}
  ) -> FaultResolution {
    let table = domain.table
    // Who has the frame locked may not wait for the claim: somebody may wait with the claim for the lock.
    let mayWait = waits && !isAdmitted
    let before = mayWait ? table.claim(page) : table.tryClaim(page)
    if !mayWait, before.contains(.claimed) { return .retry }
    TestHooks.reach(.deciding, page: page)
    defer { table.releaseClaim(page) }

    if before.contains(.readDenied) || (isWrite && before.contains(.writeDenied)) { return .denied }
    let delivery = domain.delivery.load(ordering: .acquiring)
    if delivery == .none || delivery == .asynchronous { return .gone }
    if domain.hasSeals, let refusal = domain.withSeals({ $0.admit(page, in: domain) }) ?? nil {
      return refusal == .held ? .held : .gone
    }
    if !isWrite { return mapForReading(page, in: domain) }
    if before.contains(.open) {
      // Somebody was faster. Unprotecting once more costs little, wakes whoever waits, and mends a page that could not be
      // protected again when it was collected.
      domain.counters.add(.alreadyOpen)
      let resolution = openAgain(page, in: domain, delivery)
      return resolution == .opened ? .alreadyOpen : resolution
    }

    var locked: UInt = 0
    if domain.hasSource {
      if isAdmitted {
        // It was cleaned since the store agreed: whoever waits asks again.
        if domain.withSource({ $0.isUnderWriteback(page) || !$0.isGranted(page) }) == true { return .held }
      } else {
        switch domain.withSource({ $0.admit(page, in: domain) }) ?? .admitted(0) {
        case .admitted(let extent): locked = extent
        case .refused(let resolution): return resolution
        }
      }
    }
    defer { if locked != 0 { domain.withSource { $0.dismiss(page, locked) } } }

    // A fault that is tried again has told its callbacks before.
    let isTold = before.contains(.told)
    let claimed = isTold ? page..<page + 1 : claimAround(page, in: domain)
    var pages = claimed
    defer { for neighbour in pages where neighbour != page { table.releaseClaim(neighbour) } }

    let (decision, alike) = domain.withSharing { $0.decide(page, among: claimed) } ?? (ReuseDecision.reuse, claimed)
    for other in claimed where !alike.contains(other) { table.releaseClaim(other) }
    pages = alike
    noteClaims(pages)
    if decision == .retry { return .retry }

    if !isTold { FirstWriteCallbacks.call(domain, page: page, opening: pages) }

    let isFirst = opensFirst(page, of: pages, decision, delivery) && openAlone(page, in: domain, delivery)
    if isFirst { noteOpen() }
    var resolution = FaultResolution.opened
    let isKept = keep(&pages, for: page, isOpen: isFirst, in: domain)
    noteClaims(pages)
    if !isKept {
      resolution = .held
    } else {
      TestHooks.reach(.kept, page: page)
      resolution = decision == .copy ? copy(pages, in: domain, delivery) : open(pages, faulted: page, in: domain, delivery)
    }
    if resolution != .opened {
      if !isFirst, resolution == .retry || resolution == .held { table.noteTold(page) }
      pages = releaseNeighbours(of: page, pages, in: domain)
      // Who faulted has what it needs; the neighbours wait for a fault of their own.
      if !isFirst || resolution == .failed { return resolution }
    }
    if decision == .reuse, domain.sharing.load(ordering: .relaxed) != 0 { domain.counters.add(.reuses, pages.count) }
    if isTold { table.remove(.told, at: page) }
    TestHooks.reach(.unprotected, page: page)
    record(pages, faulted: page, in: domain)
    return .opened
  }

  /// Claims pages around `page` that this fault may open along with it. Returns the run of pages claimed.
  ///
  /// Where a fault copies, pages in between that are open are claimed as well: the others beyond them can be had with one
  /// system call then. Open they stay, whatever becomes of the fault.
  @inline(__always) private static func claimAround(_ page: Int, in domain: borrowing FaultDomain) -> Range<Int> {
    let copies = domain.owed.load(ordering: .relaxed) != 0 || domain.sharing.load(ordering: .relaxed) != 0
    guard copies, domain.opensChunks.load(ordering: .relaxed), domain.pageSize == Memory.pageSize else {
      return page..<claimNeighbours(from: page + 1, to: page + domain.faultAround.window(at: page), in: domain)
    }
    let passesOpen = mayPassOpenPages(domain)
    let window = domain.density.window(at: page)
    let start = page & ~(window - 1)
    var first = page
    while first > start, tryClaim(first - 1, in: domain, passesOpen: passesOpen) { first -= 1 }
    return first..<claimNeighbours(from: page + 1, to: start + window, in: domain, passesOpen: passesOpen)
  }

  /// Not where callbacks hear of every page that is opened, nor where open pages differ from the others in more than that.
  @inline(__always) private static func mayPassOpenPages(_ domain: borrowing FaultDomain) -> Bool {
    domain.callbacks.load(ordering: .relaxed) == 0 && domain.delivery.load(ordering: .relaxed) != .mprotect
      && !domain.hasMinorFaults.load(ordering: .relaxed)
  }

  /// Claims pages up to the first that is denied or somebody else's, or open if open pages are not to be passed. Returns where they
  /// end.
  @inline(__always) private static func claimNeighbours(
    from start: Int, to limit: Int, in domain: borrowing FaultDomain, passesOpen: Bool = false
  ) -> Int {
    let end = min(limit, domain.table.pageCount)
    var next = start
    while next < end, tryClaim(next, in: domain, passesOpen: passesOpen) { next += 1 }
    return next
  }

  @inline(__always) private static func tryClaim(_ page: Int, in domain: borrowing FaultDomain, passesOpen: Bool) -> Bool {
    let before = domain.table.tryClaim(page)
    if before.contains(.claimed) { return false }
    if before.isDisjoint(with: .openDeniedOrTold), domain.mayTakeAlong(page) { return true }
    if passesOpen, before.contains(.open), !domain.isSealed(page), before.isDisjoint(with: .deniedOrTold) { return true }
    domain.table.releaseClaim(page)
    return false
  }

  private static func copy(
    _ pages: Range<Int>, in domain: borrowing FaultDomain, _ delivery: FaultDelivery
  ) -> FaultResolution {
    let resolution = domain.withSharing { $0.copy(pages, in: domain) } ?? .failed
    if resolution == .opened { wake(pages, in: domain) }
    return resolution
  }

  /// A page that went to another frame is not registered with the userfaultfd: there is nothing to unprotect, only to wake.
  private static func openAgain(
    _ page: Int, in domain: borrowing FaultDomain, _ delivery: FaultDelivery
  ) -> FaultResolution {
    if delivery != .mprotect, domain.needsRegistration.load(ordering: .relaxed) {
      let range = domain.addresses(of: page..<page + 1)
      if domain.hasMinorFaults.load(ordering: .relaxed), let refusal = mapForWriting(page, in: domain) { return refusal }
      wake(page..<page + 1, in: domain)
      _ = Uffd.unprotect(domain.descriptor.load(ordering: .acquiring), range, wake: true)
      return .opened
    }
    return open(page..<page + 1, faulted: page, in: domain, delivery)
  }

  /// Whether `page` is opened before its neighbours are copied, so that its writer need not wait for them: it wakes up, and maybe faults again
  /// elsewhere, while this thread copies. Not where the writer goes through memory in order, and would wait for the next page at once.
  @inline(__always) private static func opensFirst(
    _ page: Int, of pages: Range<Int>, _ decision: ReuseDecision, _ delivery: FaultDelivery
  ) -> Bool {
    delivery == .handlerThread && decision == .reuse && pages.count > 16
      && page != pages.lowerBound && page != pages.upperBound - 1
  }

  /// Opens one page out of those that are claimed; false if its time has not come.
  private static func openAlone(_ page: Int, in domain: borrowing FaultDomain, _ delivery: FaultDelivery) -> Bool {
    let alone = page..<page + 1
    if domain.withOwedBytes({ $0.keep(alone, in: domain) }) == .held { return false }
    guard open(alone, faulted: page, in: domain, delivery) == .opened else { return false }
    record(alone, faulted: page, in: domain)
    return true
  }

  /// Keeps what snapshots are owed of `pages`; false if there is no room for `page` itself. No snapshot is lost and nobody is held for the sake
  /// of neighbours: where there is no room for them, or some have no bytes, they are left out.
  private static func keep(
    _ pages: inout Range<Int>, for page: Int, isOpen: Bool, in domain: borrowing FaultDomain
  ) -> Bool {
    let all = pages
    if all.count > 1 {
      if domain.withOwedBytes({ $0.keepAhead(all, in: domain) }) != .held {
        if domain.isForeign, let readable = domain.withOwedBytes({ $0.readable(around: page, in: all) }),
          readable != all
        {
          pages = release(all, but: readable, in: domain)
        }
        return true
      }
      pages = releaseNeighbours(of: page, all, in: domain)
    }
    return isOpen || domain.withOwedBytes({ $0.keep(page..<page + 1, in: domain) }) != .held
  }

  /// Lets neighbours go that were not opened, and returns what is left.
  private static func releaseNeighbours(of page: Int, _ pages: Range<Int>, in domain: borrowing FaultDomain) -> Range<Int> {
    release(pages, but: page..<page + 1, in: domain)
  }

  private static func release(_ pages: Range<Int>, but kept: Range<Int>, in domain: borrowing FaultDomain) -> Range<Int> {
    let hasCallbacks = domain.callbacks.load(ordering: .relaxed) != 0
    for other in pages where !kept.contains(other) {
      if hasCallbacks, !domain.table[other].contains(.open) { domain.table.noteTold(other) }
      domain.table.releaseClaim(other)
    }
    return kept
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
  private static func open(
    _ pages: Range<Int>, faulted: Int, in domain: borrowing FaultDomain, _ delivery: FaultDelivery
  ) -> FaultResolution {
    let range = domain.addresses(of: pages)
    if delivery == .mprotect { return MprotectOpening.open(pages, in: domain) }
    if domain.hasSource { domain.withSource { $0.willOpen(pages) } }
    if domain.hasMinorFaults.load(ordering: .relaxed), let refusal = mapForWriting(faulted, in: domain) { return refusal }
    let descriptor = domain.descriptor.load(ordering: .acquiring)
    let result = Uffd.unprotect(descriptor, range, wake: delivery == .handlerThread)
    switch result {
    case .done: return .opened
    case .again:
      domain.counters.add(.retries)
      return .retry
    case .gone:
      // Lifting all protection ends here too; it wakes the waiters itself.
      if domain.delivery.load(ordering: .acquiring) == .none { return .gone }
      domain.fail(.mappingChanged, errno: result.errno)
    case .refused(UffdResult.badDescriptor) where domain.useSpareDescriptor(insteadOf: descriptor):
      return open(pages, faulted: faulted, in: domain, delivery)
    case .refused(let errno):
      domain.fail(errno == UffdResult.badDescriptor ? .descriptorClosed : .refused, errno: errno)
    }
    return .failed
  }

  /// Maps a page that is there and not mapped, so that there is an entry to unprotect. Neighbours that are not mapped trap once more,
  /// and are found open then. `nil` if all went well; whatever is wrong otherwise, unprotecting finds it too.
  private static func mapForWriting(_ page: Int, in domain: borrowing FaultDomain) -> FaultResolution? {
    let range = domain.addresses(of: page..<page + 1)
    let (result, _) = Uffd.mapExisting(domain.descriptor.load(ordering: .acquiring), range, protected: true)
    guard result == .again else { return nil }
    domain.counters.add(.retries)
    return .retry
  }

  /// How many pages are mapped for one that is read, where pages are protected by not being mapped.
  private static let readAround = 16

  /// Maps pages that are there but not mapped, protected, for whoever reads them. `page` is claimed. Its neighbours are mapped if that is
  /// possible; if it cannot be mapped itself although it is there, its reader would fault for ever.
  private static func mapForReading(_ page: Int, in domain: borrowing FaultDomain) -> FaultResolution {
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
      let descriptor = domain.descriptor.load(ordering: .acquiring)
      let (result, bytes) = Uffd.mapExisting(descriptor, next, protected: true)
      switch result {
      case .done: rest = AddressRange(start: rest.start + UInt(bytes), end: rest.end)
      case .again: return .retry
      case .refused(UffdResult.badDescriptor):
        if domain.useSpareDescriptor(insteadOf: descriptor) { continue }
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
    guard domain.delivery.load(ordering: .relaxed) == .handlerThread else { return }
    domain.counters.add(.wakes)
    let descriptor = domain.descriptor.load(ordering: .acquiring)
    let result = Uffd.wake(descriptor, domain.addresses(of: pages))
    if result == .refused(errno: UffdResult.badDescriptor), domain.useSpareDescriptor(insteadOf: descriptor) {
      wake(pages, in: domain)
    }
  }
}
