extension SnapshotSet {
  /// Copies the pages that are pinned for writing, at the instant of the snapshot: the wrprotect lock is held exclusively, and all is
  /// protected. Returns why the snapshot cannot be; nobody knows the store then.
  static func keepPinned(
    _ store: CaptureStore, _ memory: ProcessMemory?, _ domain: borrowing FaultDomain
  ) -> PinError? {
    let table = domain.table
    if table.pinned.isEmpty { return nil }
    var pages: [Int] = []
    table.forEachPinned(in: 0..<table.pageCount) { page, entry in if entry.pinsForWriting > 0 { pages.append(page) } }
    for page in pages {
      // A store that is not in use yet may be held, and nobody waits for it.
      let verdict =
        table[page].contains(.readDenied) && !domain.hasSeals && !domain.hasSource
        ? store.keep(unreadable: page, memory, in: domain) : store.keep(page..<page + 1, in: domain, isAhead: true)
      if verdict == .kept, !store.isLost { continue }
      let range = domain.addresses(of: page..<page + 1)
      if let failure = store.failure(range), !store.isLost(to: .limit), verdict == .kept {
        return PinError(.outOfMemory, operation: "snapshot", errno: failure.errno, range: range, advice: failure.advice)
      }
      return PinError(
        .limitReached, operation: "snapshot", range: range,
        advice:
          "\(pages.count) pages are pinned for writing and must be copied at once, and the capture limit has no room for page \(page): raise it, or unpin."
      )
    }
    return nil
  }
}
