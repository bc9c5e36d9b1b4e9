internal import Logging
internal import Synchronization

/// Errors for who touches a page, and how long they last.
///
/// A refused page loses its rights, so that the access becomes a signal, whichever way it came; the watchdog gives them back. Both are done
/// with ``FilePages/refusals`` locked, so that no page stays refused that is not on the list, and with the wrprotect lock shared: while the
/// region is protected only. Once it is not, what is not there would read as zeros to whoever had a right to it (K3).
extension FilePages {
  enum Refusal {
    /// It may not even be read.
    case none
    case read
  }

  /// Gives whoever waits for `page`, which is marked as `filling`, an error: SIGBUS for an access, EFAULT for a system call. A little later
  /// the page is as before, and the next access asks the store again.
  func refuse(_ page: Int, _ error: PinError, _ access: Refusal) {
    var isFirst: Bool?
    while isFirst == nil {
      isFirst = refusals.withLock { list in
        let isChanged = whileProtected { domain in
          list[page] = error
          TestHooks.reach(.refusing, page: page)
          refused.insert(page..<page + 1)
          _ = Memory.protect(pageAddresses(page), access == .none || domain.table[page].contains(.readDenied) ? [] : .read)
        }
        return isChanged == .notNow ? nil : list.count == 1
      }
      if isFirst == nil { Kernel.pause(nanoseconds: 50_000) }
    }
    protection.handler.logger.error(
      "page \(page) of \(addresses) could not be \(access == .none ? "read" : "made writable"): \(error)")
    counters.add(.refusedPages)
    giveUp(page..<page + 1)
    if isFirst == true { protection.handler.everyTick { [self] in liftRefusals() } }
  }

  /// Lets pages be tried again. By the watchdog, a few times a second, so that a device that failed is not asked for every access. True if
  /// it is to be called again.
  private func liftRefusals() -> Bool {
    refusals.withLock { list in
      let isChanged = whileProtected { domain in
        for page in list.keys {
          _ = Memory.protect(pageAddresses(page), domain.table[page].rights)
          refused.remove(page..<page + 1)
        }
        list = [:]
      }
      return isChanged == .notNow
    }
  }

  private enum Change { case done, never, notNow }

  /// Runs `body` with the wrprotect lock shared, if it is free and the region is protected.
  private func whileProtected(_ body: (borrowing FaultDomain) -> Void) -> Change {
    Kernel.withSignalsBlocked { unsafe whileProtected(protection.domain.pointee, body) }
  }

  private func whileProtected(_ domain: borrowing FaultDomain, _ body: (borrowing FaultDomain) -> Void) -> Change {
    if isOver.load(ordering: .acquiring) || protection.failure != nil { return .never }
    guard let hold = domain.lock.tryShared() else { return .notNow }
    let isProtected = domain.delivery.load(ordering: .acquiring) != .none
    if isProtected { body(domain) }
    _ = consume hold
    return isProtected ? .done : .never
  }
}
