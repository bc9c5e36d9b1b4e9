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
      try flushAlone()
      state.lastGood = number
    }
  }

  private func flushAlone() throws(PinError) {
    var failure: PinError?
    do throws(PinError) { try writeBack() } catch { failure = error }
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
    var again = write(first.pages, isMarked: false, &failure)
    write(copies: first.pinned, &failure)
    // They were written again before their turn came, and are held as they are this time.
    if !again.isEmpty {
      let second = try collect(marking: again)
      again = write(second.pages, isMarked: true, &failure)
      write(copies: second.pinned, &failure)
    }
    if let failure { throw failure }
  }

  struct Collected {
    var pages: DirtySet
    /// Those among the dirty pages that somebody may write without a fault.
    var pinned: DirtySet
  }

  /// Protects every page, and takes those that are dirty; the ones of `marking` go under writeback in the same moment, all others stay
  /// dirty then.
  private func collect(marking: DirtySet?) throws(PinError) -> Collected {
    var found = Collected(pages: DirtySet(pageCount: pageCount), pinned: DirtySet(pageCount: pageCount))
    guard let participant = participant.withLock({ $0 }) else {
      throw PinError(.unmapped, operation: "flush", range: addresses)
    }
    _ = try session.arm(participant, event: .writeback) { domain in
      var all = DirtySet(pageCount: pageCount)
      dirty.drain { all.append($0) }
      var others = DirtySet(pageCount: pageCount)
      if let marking {
        others = all.subtracting(marking)
        all = all.subtracting(others)
      }
      found = split(all)
      for run in others.union(found.pinned).runs { dirty.insert(run) }
      for run in found.pages.runs { unflushed.insert(run) }
      if marking != nil { for run in found.pages.runs { mark(run) } }
    }
    do throws(PinError) { try frames.mapDirectly() } catch {
      for run in found.pages.runs {
        dirty.insert(run)
        writeback.remove(run)
      }
      throw error
    }
    return found
  }

  private func split(_ pages: DirtySet) -> Collected {
    var split = Collected(pages: DirtySet(pageCount: pageCount), pinned: DirtySet(pageCount: pageCount))
    for run in pages.runs {
      for page in run {
        if isPinnedForWriting(page) { split.pinned.append(page..<page + 1) } else { split.pages.append(page..<page + 1) }
      }
    }
    return split
  }

  /// Writes pages, chunk by chunk; returns those that were written again before they could be marked, which stay dirty.
  private func write(_ pages: DirtySet, isMarked: Bool, _ failure: inout PinError?) -> DirtySet {
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
    let transfers = runs.flatMap(transfers)
    let outcomes = store.write(transfers)
    for (transfer, error) in zip(transfers, outcomes) {
      if let error {
        dirty.insert(transfer.pages)
        failure = failure ?? error
      } else {
        counters.add(.writtenPages, transfer.pages.count)
      }
    }
    for run in runs { writeback.remove(run) }
  }

  /// Where the pool maps the pages: whatever rights the region's own mapping has.
  private func transfers(_ pages: Range<Int>) -> [PageTransfer] {
    var transfers: [PageTransfer] = []
    for page in pages {
      let address = frames.directAddress(of: page)
      if let last = transfers.last, last.memory.end == address {
        transfers[transfers.count - 1].pages = last.pages.lowerBound..<page + 1
        transfers[transfers.count - 1].memory = AddressRange(start: last.memory.start, end: address + UInt(Memory.pageSize))
      } else {
        transfers.append(PageTransfer(pages: page..<page + 1, memory: AddressRange(start: address, count: Memory.pageSize)))
      }
    }
    return transfers
  }

  /// Writes pages that change while they are written, each from a copy of one moment; they stay dirty.
  private func write(copies pages: DirtySet, _ failure: inout PinError?) {
    guard !pages.isEmpty, let copy = try? Mapping(count: Memory.pageSize) else { return }
    for run in pages.runs {
      for page in run {
        unsafe Memory.copy(
          UnsafeRawPointer(bitPattern: frames.directAddress(of: page))!,
          to: UnsafeMutableRawPointer(bitPattern: copy.range.start)!, count: Memory.pageSize)
        let outcome = store.write([PageTransfer(pages: page..<page + 1, memory: copy.range)])
        if let error = outcome[0] { failure = failure ?? error }
      }
    }
  }

  /// Whether a pin lets somebody write the page without a fault.
  func isPinnedForWriting(_ page: Int) -> Bool { table.current(page).pinsForWriting > 0 }
}
