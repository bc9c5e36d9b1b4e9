internal import Synchronization

/// Which pages were written and are not known to be durable, and which a failed sync may have lost.
///
/// After a failed writeback the kernel takes the pages for clean and reports the error once: the next fsync succeeds although nothing of
/// them was written. So what was written before a failure counts as lost until it is written again, by a write that began after it.
final class WriteAccount: Sendable {
  private struct State {
    /// Written, or being written, and lost since.
    var lost: DirtySet
    /// How many syncs have failed.
    var failures = 0
    var mustSyncDirectory: Bool
  }

  /// A write that is going on.
  struct Ticket { fileprivate let failures: Int }

  private let state: Mutex<State>
  /// Under the lock of `state`.
  private let written: OwnedPageBitmap
  /// Syncs run one after the other, so that each knows what it answers for.
  let flushing = Mutex(())

  init(pageCount: Int, mustSyncDirectory: Bool) throws(PinError) {
    written = try OwnedPageBitmap(pageCount: pageCount)
    state = Mutex(State(lost: DirtySet(pageCount: pageCount), mustSyncDirectory: mustSyncDirectory))
  }

  private var pageCount: Int { written.bits.pageCount }

  /// Before the first byte of a batch is written.
  func begin(_ transfers: [PageTransfer]) -> Ticket {
    state.withLock { state in
      for transfer in transfers { written.bits.insert(transfer.pages.clamped(to: 0..<pageCount)) }
      return Ticket(failures: state.failures)
    }
  }

  /// When all is over; `done` says which transfers were written. A sync that began meanwhile may not have seen their bytes.
  func end(_ ticket: Ticket, _ transfers: [PageTransfer], _ done: (Int) -> Bool) {
    state.withLock { state in
      for (index, transfer) in transfers.enumerated() where done(index) { written.bits.insert(transfer.pages) }
      guard !state.lost.isEmpty, ticket.failures == state.failures else { return }
      let again = transfers.indices.filter(done).map { transfers[$0].pages }
      state.lost = state.lost.subtracting(DirtySet(pageCount: pageCount, runs: again))
    }
  }

  /// Takes what the sync that follows answers for.
  func beginSync() -> [Range<Int>] {
    state.withLock { _ in
      var runs: [Range<Int>] = []
      written.bits.drain { runs.append($0) }
      return runs
    }
  }

  /// The sync failed: those pages are lost, and so is what was written until now, as the kernel reports the error to nobody else.
  func failed(_ synced: [Range<Int>]) {
    state.withLock { state in
      var runs = synced
      written.bits.drain { runs.append($0) }
      state.lost = state.lost.union(DirtySet(pageCount: pageCount, runs: runs))
      state.failures += 1
    }
  }

  /// The pages behind a file's end are lost however long ago they were written.
  func truncated(at size: Int) { failed([size / Memory.pageSize..<pageCount]) }

  var lost: DirtySet { state.withLock { $0.lost } }
  var mustSyncDirectory: Bool {
    get { state.withLock { $0.mustSyncDirectory } }
    set { state.withLock { $0.mustSyncDirectory = newValue } }
  }
}
