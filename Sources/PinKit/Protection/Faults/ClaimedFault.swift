internal import Synchronization

/// A fault whose page this thread has claimed. What it takes on its way it owns until ``letGo(in:)``, however the fault ends: the claims of
/// neighbours, and the frame's lock.
///
/// Its methods are the steps of ``FaultPath/resolve(page:isWrite:isAdmitted:waits:in:holding:noteClaims:noteOpen:)``, in their order. One that
/// ends the fault returns what became of it, and throws nothing: the runtime calls the host's hooks for an error, and may allocate (K2).
struct ClaimedFault: ~Copyable {
  let page: Int
  /// What its entry said before the claim.
  private let before: PageTable.Entry
  private let delivery: FaultDelivery
  /// The pages that are claimed, `page` among them.
  private(set) var pages: Range<Int>
  /// The extent of the page's frame, if the store has locked it.
  private var locked: UInt = 0
  private var decision = ReuseDecision.reuse
  /// Whether the page is open, and on record, while its neighbours are not yet.
  private var isOpen = false

  /// Claims `page`. While somebody else has it, waits, or is `nil`.
  @inline(__always) init?(claiming page: Int, waits: Bool, in domain: borrowing FaultDomain) {
    let before = waits ? domain.table.claim(page) : domain.table.tryClaim(page)
    if !waits, before.contains(.claimed) { return nil }
    TestHooks.reach(.deciding, page: page)
    self.page = page
    self.before = before
    pages = page..<page + 1
    delivery = domain.delivery.load(ordering: .acquiring)
  }

  deinit { assertionFailure("A fault has ended, and nobody let go of its claims.") }

  /// First the claims of neighbours, then the frame's lock, then the claim of the page.
  @inline(__always) consuming func letGo(in domain: borrowing FaultDomain) {
    for neighbour in pages where neighbour != page { domain.table.releaseClaim(neighbour) }
    if locked != 0 { domain.withSource { $0.dismiss(page, locked) } }
    domain.table.releaseClaim(page)
    discard self
  }

  // MARK: The steps

  /// Ends where the program took the right away itself, and where nothing is protected any more.
  @inline(__always) func checkRights(isWrite: Bool) -> FaultResolution? {
    if before.contains(.readDenied) || (isWrite && before.contains(.writeDenied)) { return .denied }
    return delivery == .none || delivery == .asynchronous ? .gone : nil
  }

  /// Opens the page if it is sealed (S1).
  @inline(__always) func openSeal(in domain: borrowing FaultDomain) -> FaultResolution? {
    guard domain.hasSeals, let refusal = domain.withSeals({ $0.admit(page, in: domain) }) ?? nil else { return nil }
    return refusal == .held ? .held : .gone
  }

  /// A read needs no more than that the page is mapped.
  @inline(__always) func mapForReading(isWrite: Bool, in domain: borrowing FaultDomain) -> FaultResolution? {
    isWrite ? nil : FaultPath.mapForReading(page, in: domain)
  }

  /// Ends where somebody was faster. Unprotecting once more costs little, wakes whoever waits, and mends a page that could not be protected
  /// again when it was collected.
  @inline(__always) func openAgain(in domain: borrowing FaultDomain) -> FaultResolution? {
    guard before.contains(.open) else { return nil }
    domain.counters.add(.alreadyOpen)
    let resolution = FaultPath.openAgain(page, in: domain, delivery)
    return resolution == .opened ? .alreadyOpen : resolution
  }

  /// Asks the page's store, if it has one; the frame is locked from then on (N3).
  ///
  /// - Parameter isAdmitted: The store has agreed, and the caller has the frame locked.
  @inline(__always) mutating func askStore(isAdmitted: Bool, in domain: borrowing FaultDomain) -> FaultResolution? {
    guard domain.hasSource else { return nil }
    if isAdmitted {
      // It was cleaned since the store agreed: whoever waits asks again.
      return domain.withSource { $0.isUnderWriteback(page) || !$0.isGranted(page) } == true ? .held : nil
    }
    switch domain.withSource({ $0.admit(page, in: domain) }) ?? .admitted(0) {
    case .admitted(let extent):
      locked = extent
      return nil
    case .refused(let resolution): return resolution
    }
  }

  /// Claims neighbours, and decides whether the page keeps its frame; those of which the same is not true are let go.
  @inline(__always) mutating func decide(
    in domain: borrowing FaultDomain, _ noteClaims: (Range<Int>) -> Void
  ) -> FaultResolution? {
    let claimed = isTold ? pages : claimAround(in: domain)
    let (decision, alike) = domain.withSharing { $0.decide(page, among: claimed) } ?? (ReuseDecision.reuse, claimed)
    for other in claimed where !alike.contains(other) { domain.table.releaseClaim(other) }
    pages = alike
    self.decision = decision
    noteClaims(pages)
    return decision == .retry ? .retry : nil
  }

  /// First-write callbacks hear of the page while it has its old bytes, and nobody can write it.
  @inline(__always) func tellCallbacks(in domain: borrowing FaultDomain) {
    if !isTold { FirstWriteCallbacks.call(domain, page: page, opening: pages) }
  }

  /// Opens the page before its neighbours are copied, so that its writer need not wait for them: it wakes up, and maybe faults again elsewhere,
  /// while this thread copies. Not where the writer goes through memory in order, and would wait for the next page at once.
  @inline(__always) mutating func openFirst(in domain: borrowing FaultDomain, _ noteOpen: () -> Void) {
    guard delivery == .handlerThread, decision == .reuse, pages.count > 16,
      page != pages.lowerBound, page != pages.upperBound - 1, openAlone(in: domain)
    else { return }
    isOpen = true
    noteOpen()
  }

  /// Keeps what snapshots are owed, or ends: its writer is held.
  @inline(__always) mutating func keepOwedBytes(
    in domain: borrowing FaultDomain, _ noteClaims: (Range<Int>) -> Void
  ) -> FaultResolution? {
    let isKept = keepOwedBytes(in: domain)
    noteClaims(pages)
    if !isKept {
      domain.table.noteTold(page)
      return .held
    }
    TestHooks.reach(.kept, page: page)
    return nil
  }

  /// Makes the pages writable, in the frames that they have or in copies, and wakes who waits for them.
  @inline(__always) mutating func act(in domain: borrowing FaultDomain) -> FaultResolution? {
    let resolution =
      decision == .copy
      ? FaultPath.copy(pages, in: domain, delivery) : FaultPath.open(pages, faulted: page, in: domain, delivery)
    if resolution != .opened {
      if !isOpen, resolution == .retry || resolution == .held { domain.table.noteTold(page) }
      release(allBut: page..<page + 1, in: domain)
      // Who faulted has what it needs; the neighbours wait for a fault of their own.
      if !isOpen || resolution == .failed { return resolution }
    }
    if decision == .reuse, domain.sharing.load(ordering: .relaxed) != 0 { domain.counters.add(.reuses, pages.count) }
    return nil
  }

  /// Marks the pages as open.
  @inline(__always) func record(in domain: borrowing FaultDomain) {
    if isTold { domain.table.remove(.told, at: page) }
    TestHooks.reach(.unprotected, page: page)
    FaultPath.record(pages, faulted: page, in: domain)
  }

  // MARK: Parts of them

  /// A fault that is tried again has told its callbacks before.
  @inline(__always) private var isTold: Bool { before.contains(.told) }

  /// Opens the page out of those that are claimed; false if its time has not come.
  private func openAlone(in domain: borrowing FaultDomain) -> Bool {
    let alone = page..<page + 1
    if domain.withOwedBytes({ $0.keep(alone, in: domain) }) == .held { return false }
    guard FaultPath.open(alone, faulted: page, in: domain, delivery) == .opened else { return false }
    FaultPath.record(alone, faulted: page, in: domain)
    return true
  }

  /// False if there is no room for the page itself, and it is not open. No snapshot is lost and nobody is held for the sake of neighbours: where
  /// there is no room for them, or some have no bytes, they are let go.
  private mutating func keepOwedBytes(in domain: borrowing FaultDomain) -> Bool {
    let all = pages
    let page = page
    if all.count > 1 {
      if domain.withOwedBytes({ $0.keepAhead(all, in: domain) }) != .held {
        if domain.isForeign, let readable = domain.withOwedBytes({ $0.readable(around: page, in: all) }), readable != all {
          release(allBut: readable, in: domain)
        }
        return true
      }
      release(allBut: page..<page + 1, in: domain)
    }
    return isOpen || domain.withOwedBytes({ $0.keep(page..<page + 1, in: domain) }) != .held
  }

  /// Lets neighbours go that were not opened.
  private mutating func release(allBut kept: Range<Int>, in domain: borrowing FaultDomain) {
    let hasCallbacks = domain.callbacks.load(ordering: .relaxed) != 0
    for other in pages where !kept.contains(other) {
      if hasCallbacks, !domain.table[other].contains(.open) { domain.table.noteTold(other) }
      domain.table.releaseClaim(other)
    }
    pages = kept
  }
}
