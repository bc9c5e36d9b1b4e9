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
///           ─► check rights                   (denied? protected at all?)
///           ─► open it, if it is sealed       (S1)
///           ─► open already? open it again    (which costs little, and mends what a refused protection left)
///           ─► ask its store, if it has one   (the page locked: N3; a page that is not there comes from the store first)
///           ─► decide                         (frame shared? how many neighbours?)
///           ─► tell first-write callbacks     (the page still holds the old bytes, and nobody can write it)
///           ─► open the page first            (where a thread copies many neighbours that have time)
///           ─► keep what snapshots are owed   (or hold the writer)
///           ─► act: reuse the frame, or copy  (a copy maps other frames in the pages' place); unprotect, wake
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
/// Each step is a method of ``ClaimedFault``, which owns what has to be let go.
///
/// Nothing here allocates, blocks on managed memory, or takes a lock that user code can hold (K2). First-write callbacks are
/// user code; their documentation forbids both.
enum FaultPath {
  /// - Parameters:
  ///   - isWrite: False only for pages that are protected by not being mapped (minor faults): those may be read at any time.
  ///   - isAdmitted: The page's store has agreed, and the caller has its frame locked.
  ///   - waits: Whether this thread may sleep while another has the page claimed.
  ///   - noteClaims: Told of the pages that are claimed, before anything is done about them, and when there are fewer.
  ///   - noteOpen: Told when the page is open, if its neighbours take a while longer.
  static func resolve(
    page: Int, isWrite: Bool = true, isAdmitted: Bool = false, waits: Bool = true, in domain: borrowing FaultDomain,
    holding: borrowing WriteProtectLock.SharedHold, noteClaims: (Range<Int>) -> Void = { _ in }, noteOpen: () -> Void = {}
  ) -> FaultResolution {
    // Who has the frame locked may not wait for the claim: somebody may wait with the claim for the lock.
    guard var fault = ClaimedFault(claiming: page, waits: waits && !isAdmitted, in: domain) else { return .retry }
    let resolution = take(&fault, isWrite: isWrite, isAdmitted: isAdmitted, in: domain, noteClaims, noteOpen)
    fault.letGo(in: domain)
    return resolution
  }

  /// All steps, up to the one that ends it.
  @inline(__always) private static func take(
    _ fault: inout ClaimedFault, isWrite: Bool, isAdmitted: Bool, in domain: borrowing FaultDomain,
    _ noteClaims: (Range<Int>) -> Void, _ noteOpen: () -> Void
  ) -> FaultResolution {
    if let end = fault.checkRights(isWrite: isWrite) { return end }
    if let end = fault.openSeal(in: domain) { return end }
    if let end = fault.mapForReading(isWrite: isWrite, in: domain) { return end }
    if let end = fault.openAgain(in: domain) { return end }
    if let end = fault.askStore(isAdmitted: isAdmitted, in: domain) { return end }
    if let end = fault.decide(in: domain, noteClaims) { return end }
    fault.tellCallbacks(in: domain)
    fault.openFirst(in: domain, noteOpen)
    if let end = fault.keepOwedBytes(in: domain, noteClaims) { return end }
    if let end = fault.act(in: domain) { return end }
    fault.record(in: domain)
    return .opened
  }
}
