internal import Synchronization

extension ClaimedFault {
  /// Claims pages around `page` that this fault may open along with it. Returns the run of pages claimed.
  ///
  /// Where a fault copies, pages in between that are open are claimed as well: the others beyond them can be had with one
  /// system call then. Open they stay, whatever becomes of the fault.
  @inline(__always) func claimAround(in domain: borrowing FaultDomain) -> Range<Int> {
    // The kernel may refuse what lies beyond, and not the rest.
    let slice = domain.together(with: page)
    let copies = domain.owed.load(ordering: .relaxed) != 0 || domain.sharing.load(ordering: .relaxed) != 0
    guard copies, domain.opensChunks.load(ordering: .relaxed), domain.pageSize == Memory.pageSize else {
      return
        page..<claimNeighbours(
          from: page + 1, to: min(slice.upperBound, page + domain.faultAround.window(at: page)), in: domain)
    }
    let passesOpen = mayPassOpenPages(domain)
    let window = domain.density.window(at: page)
    let start = max(slice.lowerBound, page & ~(window - 1))
    var first = page
    while first > start, tryClaim(first - 1, in: domain, passesOpen: passesOpen) { first -= 1 }
    return
      first..<claimNeighbours(
        from: page + 1, to: min(slice.upperBound, (page & ~(window - 1)) + window), in: domain, passesOpen: passesOpen)
  }

  /// Not where callbacks hear of every page that is opened, nor where open pages differ from the others in more than that.
  @inline(__always) private func mayPassOpenPages(_ domain: borrowing FaultDomain) -> Bool {
    domain.callbacks.load(ordering: .relaxed) == 0 && domain.delivery.load(ordering: .relaxed) != .mprotect
      && !domain.hasMinorFaults.load(ordering: .relaxed)
  }

  /// Claims pages up to the first that is denied or somebody else's, or open if open pages are not to be passed. Returns where they
  /// end.
  @inline(__always) private func claimNeighbours(
    from start: Int, to limit: Int, in domain: borrowing FaultDomain, passesOpen: Bool = false
  ) -> Int {
    var next = start
    while next < limit, tryClaim(next, in: domain, passesOpen: passesOpen) { next += 1 }
    return next
  }

  @inline(__always) private func tryClaim(_ page: Int, in domain: borrowing FaultDomain, passesOpen: Bool) -> Bool {
    let before = domain.table.tryClaim(page)
    if before.contains(.claimed) { return false }
    if before.isDisjoint(with: .openDeniedOrTold), domain.mayTakeAlong(page) { return true }
    if passesOpen, before.contains(.open), !domain.isSealed(page), before.isDisjoint(with: .deniedOrTold) { return true }
    domain.table.releaseClaim(page)
    return false
  }
}
