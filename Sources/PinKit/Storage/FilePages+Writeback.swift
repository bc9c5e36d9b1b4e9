internal import Synchronization

/// Writing back what has changed.
///
/// A page is cleaned in this order, so that what reaches the store is what was there at one moment, and nothing that is written later is taken
/// for clean:
///
///     everybody who may write it is told, and it is write-protected     (start, the session's collection, end: N2, N6, N10)
///     `dirty` is cleared, `unflushed` is set                            (whoever writes it makes it dirty again)
///     `writeback` is set, if it is protected still                      (writers wait from here on)
///     its bytes are written
///     `writeback` is cleared; it is dirty again if the store failed
///     the store has flushed: it is not `unflushed` any more, and may be reclaimed
///
/// A page that is pinned for writing changes without a fault: it is written from a copy, and stays dirty (P3).
extension FilePages {
  /// In pages: what is under writeback at a time.
  private static let chunk = 2048

  /// Writes back what was written before the call, and makes it durable.
  func flush() throws(PinError) {
    let arrival = flushesBegun.load(ordering: .sequentiallyConsistent)
    try flushing.withLock { state throws(PinError) in
      // One that began after this call, and went well, has done it all.
      if state.lastGood > arrival { return }
      let number = flushesBegun.add(1, ordering: .sequentiallyConsistent).newValue
      // A signal handler of this thread that writes a page which is on its way to the store would wait for this thread.
      do throws(PinError) { try Kernel.withSignalsBlocked { () throws(PinError) in try flushAlone() } } catch {
        guard let loss = protection.failure else { throw error }
        try salvage()
        throw loss
      }
      state.lastGood = number
    }
  }

  private func flushAlone() throws(PinError) { try makeDurable { () throws(PinError) in try writeBack() } }

  /// Runs `write`, which hands pages to the store, and makes durable what it has been given.
  func makeDurable(_ write: () throws(PinError) -> Void) throws(PinError) {
    var failure: PinError?
    do throws(PinError) { try write() } catch { failure = error }
    // Also where some could not be written: the others need not wait for them.
    let written = unflushed.pages(in: 0..<pageCount)
    do throws(PinError) { try store.flush() } catch {
      // Nobody knows which of them are there. All are written again.
      for run in written.runs { dirty.insert(run) }
      failure = failure ?? error
    }
    // Not before: meanwhile they must not be reclaimed.
    for run in written.runs { unflushed.remove(run) }
    if let failure { throw failure }
  }

  /// Writes back what was written before the call. What the store could not take stays dirty.
  private func writeBack() throws(PinError) {
    var failure: PinError?
    let first = try collect(marking: nil)
    write(copies: first.pinned, &failure)
    var again = write(first.pages, isMarked: false, &failure)
    again.formUnion(try bringBack(first.lost))
    // They were written again before their turn came, and are held as they are this time.
    if !again.isEmpty {
      let second = try collect(marking: again)
      write(copies: second.pinned, &failure)
      again = write(second.pages, isMarked: true, &failure)
      if !second.lost.isEmpty, failure == nil { failure = lostAgain(second.lost) }
    }
    if let failure { throw failure }
  }

  struct Collected {
    var pages: DirtySet
    /// Those among the dirty pages that somebody may write without a fault.
    var pinned: DirtySet
    /// Those that other code has dropped.
    var lost: DirtySet
  }

  /// Protects every page, and takes those that are dirty; the ones of `marking` go under writeback in the same moment, all others stay
  /// dirty then.
  private func collect(marking: DirtySet?) throws(PinError) -> Collected {
    var found = Collected(
      pages: DirtySet(pageCount: pageCount), pinned: DirtySet(pageCount: pageCount), lost: DirtySet(pageCount: pageCount))
    guard let participant = participant.withLock({ $0 }) else {
      throw PinError(.unmapped, operation: "flush", range: addresses)
    }
    _ = try session.arm(participant, event: .writeback) { domain in
      var all = DirtySet(pageCount: pageCount)
      // First: who looks without the lock must find one of the two, or the page seems to be clean.
      dirty.forEachRun { unflushed.insert($0) }
      dirty.drain {
        all.append($0)
        // And what a device has marked since.
        unflushed.insert($0)
        TestHooks.reach(.draining, page: $0.lowerBound)
      }
      var others = DirtySet(pageCount: pageCount)
      if let marking {
        others = all.subtracting(marking)
        all = all.subtracting(others)
      }
      found = split(all)
      for run in others.union(found.pinned).union(found.lost).runs { dirty.insert(run) }
      // Until they are copied, so that only who has the pin writes meanwhile.
      for run in found.pinned.runs { writeback.insert(run) }
      if marking != nil { for run in found.pages.runs { mark(run) } }
    }
    return found
  }

  func split(_ pages: DirtySet) -> Collected {
    var split = Collected(
      pages: DirtySet(pageCount: pageCount), pinned: DirtySet(pageCount: pageCount), lost: DirtySet(pageCount: pageCount))
    for run in pages.runs {
      for page in run {
        if !present.contains(page) {
          split.lost.append(page..<page + 1)
        } else if isPinnedForWriting(page) {
          split.pinned.append(page..<page + 1)
        } else {
          split.pages.append(page..<page + 1)
        }
      }
    }
    return split
  }

  /// Writes pages, chunk by chunk; returns those that were written again before they could be marked, which stay dirty.
  func write(_ pages: DirtySet, isMarked: Bool, _ failure: inout PinError?) -> DirtySet {
    var again = DirtySet(pageCount: pageCount)
    var batch: [Range<Int>] = []
    var count = 0
    func writeBatch() {
      write(isMarked ? batch : markUnopened(batch, &again), &failure)
      (batch, count) = ([], 0)
    }
    for run in pages.runs {
      var start = run.lowerBound
      while start < run.upperBound {
        let part = start..<min(run.upperBound, start + Self.chunk - count)
        start = part.upperBound
        batch.append(part)
        count += part.count
        if count == Self.chunk { writeBatch() }
      }
    }
    writeBatch()
    return again
  }

  /// Writes pages that are under writeback.
  private func write(_ runs: [Range<Int>], _ failure: inout PinError?) {
    if runs.isEmpty { return }
    TestHooks.reach(.writingBack, page: runs[0].lowerBound)
    let results: [(transfer: PageTransfer, error: PinError?)]
    do throws(PinError) { results = try hand(runs) } catch {
      failure = failure ?? error
      for run in runs {
        dirty.insert(run)
        writeback.remove(run)
      }
      return
    }
    for (transfer, error) in results {
      if let error {
        dirty.insert(transfer.pages)
        failure = failure ?? error
      } else {
        counters.add(.writtenPages, transfer.pages.count)
      }
    }
    for run in runs { writeback.remove(run) }
  }

  /// Whether a pin lets somebody write the page without a fault.
  func isPinnedForWriting(_ page: Int) -> Bool { table.current(page).pinsForWriting > 0 }
}
