internal import Synchronization

extension FaultDomain {
  /// The guard pages among `runs` (`MADV_GUARD_INSTALL`) of adopted memory; `nil` where the kernel cannot tell, which it can from 6.15 on, and
  /// for other memory. About 3 ns a page that is mapped.
  func guardPages(in runs: [Range<Int>]) -> DirtySet? {
    guard isForeign, pageSize == Memory.pageSize else { return nil }
    var found = DirtySet(pageCount: table.pageCount)
    let query = PageMap.Query(required: .guardPage, returned: .guardPage)
    do throws(PinError) {
      let map = try PageMap()
      for run in runs {
        try map.scan(addresses(of: run), query) { range, _ in
          found.append(page(at: range.start)..<page(at: range.end - 1) + 1)
        }
      }
    } catch { return nil }
    return found
  }
}

extension SnapshotSet {
  func guardPages(in runs: [Range<Int>]) -> DirtySet? { unsafe protection.domain.pointee.guardPages(in: runs) }

  /// Notes the guard pages that there were before the last snapshot and are none now as changed: what protected them has gone with the guard,
  /// and nobody was told. Pages that were made guard pages and are none any more are not found.
  func noteLostGuards(_ known: DirtySet?, _ now: DirtySet?) {
    guard let known, let now else { return }
    for run in known.subtracting(now).runs { protection.recordDiscard(run) }
  }

  /// Puts on record which pages were guard pages before a snapshot was armed and still are: they had no bytes at its moment, whatever they
  /// get later.
  func noteVacant(_ before: DirtySet?, _ store: CaptureStore) {
    guard let before, !before.isEmpty, let vacant = guardPages(in: before.runs), !vacant.isEmpty else { return }
    for run in vacant.runs { store.noteUnreadable(run) }
    store.vacant.withLock { $0 = vacant }
  }
}
