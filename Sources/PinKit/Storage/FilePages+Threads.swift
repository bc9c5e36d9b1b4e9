internal import Synchronization

/// What becomes of a region when a thread that is at its store ends, or does not come back (K3).
extension FilePages {
  /// The thread at `request` has ended, wherever it was: its stack is gone, and what it held is let go of here. The region is failed first, so
  /// that whoever waits finds the failure. On that very thread.
  func abandon(_ request: StoreThreads.Request, by worker: StoreWorker) {
    protection.fail(.storeEnded)
    if worker.isHolding {
      for page in worker.claims where table[page].contains(.claimed) { table.releaseClaim(page) }
      unsafe protection.domain.pointee.lock.abandonShared()
    }
    // The store has not agreed, and the mark was there before it was asked.
    if worker.hasLocked, !worker.isHolding { granted.remove(request.pages) }
    if worker.hasLocked { unsafe frames.extent(of: request.page).pointee.unlock(request.page) }
    giveUp(request.pages)
  }

  /// Nothing is under way for a request any more.
  func noteDone() {
    requestsDone.add(1, ordering: .sequentiallyConsistent)
    outstanding.subtract(1, ordering: .sequentiallyConsistent)
  }

  /// Waits for the threads that are at the store: they use the region. Before it goes, and where it can still stay. Unless it `isLast`, others
  /// go on faulting, and the wait ends when as many requests are done as there were when it began.
  ///
  /// - Throws: ``PinError`` `.timedOut` where the store has been given up.
  func awaitThreads(isLast: Bool) throws(PinError) {
    let underWay = UInt64(max(0, outstanding.load(ordering: .sequentiallyConsistent)))
    let enough = requestsDone.load(ordering: .sequentiallyConsistent) + underWay
    var deadline = unsafe Deadline(protection.domain.pointee.patience)
    while outstanding.load(ordering: .sequentiallyConsistent) != 0 {
      if !isLast, protection.failure == nil, requestsDone.load(ordering: .sequentiallyConsistent) >= enough { return }
      if protection.failure == nil {
        deadline = unsafe Deadline(protection.domain.pointee.patience)
      } else if deadline.isOver() {
        throw PinError(
          .timedOut, operation: "wait for a store", range: addresses,
          advice:
            "A call of the region's store has not returned, and uses the region: it stays until it has. Try again then.")
      }
      Kernel.pause(nanoseconds: 100_000)
    }
  }
}
