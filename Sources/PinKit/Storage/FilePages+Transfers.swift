internal import SystemPackage
internal import Synchronization

/// What the store is given.
extension FilePages {
  /// Hands pages that are under writeback to the store, where the region has them mapped: who wrote them just now has made the entries. Where
  /// it may not be read, because rights were taken away or its protection has failed, they are read where the pool maps them.
  func hand(_ runs: [Range<Int>]) throws(PinError) -> [(transfer: PageTransfer, error: PinError?)] {
    // For a store that has the kernel read them: an error is all that can become of that, where other code would get a signal.
    guard store is FileStore, !table.hasDeniedPages, protection.failure == nil else { return try handDirectly(runs) }
    let transfers = runs.map {
      PageTransfer(
        pages: $0,
        memory: AddressRange(
          start: addresses.start + UInt($0.lowerBound * Memory.pageSize), count: $0.count * Memory.pageSize))
    }
    var results = Array(zip(transfers, answers(to: transfers)))
    for index in results.indices where results[index].1?.errno == .badAddress {
      // The rights went in between.
      let again = try handDirectly([results[index].0.pages])
      results[index].1 = again.first { $0.error != nil }?.error
    }
    return results.map { ($0.0, $0.1) }
  }

  private func handDirectly(_ runs: [Range<Int>]) throws(PinError) -> [(transfer: PageTransfer, error: PinError?)] {
    var transfers: [PageTransfer] = []
    for run in runs { try append(run, to: &transfers) }
    return zip(transfers, answers(to: transfers)).map { ($0, $1) }
  }

  /// What the store says of each transfer. A store that does not answer for each has answered for none.
  private func answers(to transfers: [PageTransfer]) -> [PinError?] {
    let answers = store.write(transfers)
    if answers.count == transfers.count { return answers }
    let error = PinError(
      .inputOutput, operation: "write \(transfers.count) transfers to \(type(of: store))", range: addresses,
      advice:
        "Its write(_:) returned \(answers.count) answers; it must return one for each transfer. The pages stay dirty, and in memory."
    )
    return Array(repeating: error, count: transfers.count)
  }

  /// Adds `pages` as they lie where the pool maps them: whatever rights the region's own mapping has. They are under writeback, so that none
  /// goes to another frame.
  private func append(_ pages: Range<Int>, to transfers: inout [PageTransfer]) throws(PinError) {
    for page in pages {
      // A page that was written again meanwhile may be in an extent that the pool has not mapped yet.
      let memory = try frames.directAddresses(of: page)
      if let last = transfers.last, last.memory.end == memory.start, last.pages.upperBound == page {
        transfers[transfers.count - 1].pages = last.pages.lowerBound..<page + 1
        transfers[transfers.count - 1].memory = AddressRange(start: last.memory.start, end: memory.end)
      } else {
        transfers.append(PageTransfer(pages: page..<page + 1, memory: memory))
      }
    }
  }

  /// In pages: how many are copied before they are written.
  private static let copied = 64

  /// Writes pages that are pinned for writing, each from a copy of one moment; they stay dirty (P3). They are under writeback until they are
  /// copied: whoever has no pin waits that long.
  func write(copies pages: DirtySet, _ failure: inout PinError?) {
    do throws(PinError) { try writeCopies(pages, &failure) } catch {
      failure = failure ?? error
      for run in pages.runs { writeback.remove(run) }
    }
  }

  private func writeCopies(_ pages: DirtySet, _ failure: inout PinError?) throws(PinError) {
    if pages.isEmpty { return }
    let copy = try Mapping(count: Self.copied * Memory.pageSize)
    var batch: [PageTransfer] = []
    for run in pages.runs {
      for page in run {
        let source = try frames.directAddresses(of: page)
        let target = AddressRange(start: copy.range.start + UInt(batch.count * Memory.pageSize), count: Memory.pageSize)
        unsafe Memory.copy(
          UnsafeRawPointer(bitPattern: source.start)!, to: UnsafeMutableRawPointer(bitPattern: target.start)!,
          count: Memory.pageSize)
        writeback.remove(page..<page + 1)
        batch.append(PageTransfer(pages: page..<page + 1, memory: target))
        guard batch.count == Self.copied else { continue }
        write(copied: &batch, &failure)
      }
    }
    write(copied: &batch, &failure)
  }

  private func write(copied batch: inout [PageTransfer], _ failure: inout PinError?) {
    if batch.isEmpty { return }
    for case let error? in answers(to: batch) { failure = failure ?? error }
    batch = []
  }

  // MARK: What others did to the region

  /// Brings pages back that had changed, and that other code has dropped (`madvise(2)`): those whose bytes are still there keep them, and of
  /// the others the store's come back. What is written must never be the zeros of a frame that has none.
  func bringBack(_ lost: DirtySet) throws(PinError) -> DirtySet {
    for run in lost.runs { try bringIn(run) }
    return lost
  }

  func lostAgain(_ pages: DirtySet) -> PinError {
    PinError(
      .mappingChanged, operation: "flush", range: addresses,
      advice:
        "Other code keeps dropping pages that have changed (\(pages.count) of them); use Region.reclaim(_:) and no madvise(2)."
    )
  }

  /// Flushes, before the region goes. Where faults cannot be served any more, what is known to have changed is written all the same.
  func finish(isLast: Bool) throws(PinError) {
    if isLast { isGoing.store(true, ordering: .sequentiallyConsistent) }
    do throws(PinError) {
      try awaitThreads(isLast: isLast)
      try writeRest()
    } catch {
      // It stays; another call may be about to let it go.
      if isLast { isGoing.store(false, ordering: .sequentiallyConsistent) }
      throw error
    }
  }

  private func writeRest() throws(PinError) {
    if protection.failure == nil {
      do throws(PinError) { return try flush() } catch { if protection.failure == nil { throw error } }
    }
    try flushing.withLock { _ throws(PinError) in try Kernel.withSignalsBlocked { () throws(PinError) in try salvage() } }
  }

  /// Writes what is known to have changed in a region that failed: its frames have it, and nobody can write them through the region's
  /// addresses any more. With ``flushing`` locked.
  func salvage() throws(PinError) {
    var deadline = unsafe Deadline(protection.domain.pointee.patience)
    while unsafe protection.domain.pointee.delivery.load(ordering: .acquiring) != .none {
      if let loss = protection.failure, deadline.isOver() { throw loss }
      Kernel.pause(nanoseconds: 1_000_000)
    }
    // What mirrors have written they say now, and they have nothing to write through from here on.
    let invalidation = try protection.start(.writeback, 0..<pageCount)
    defer { invalidation?.end() }
    try makeDurable { () throws(PinError) in
      var changed = DirtySet(pageCount: pageCount)
      // First, as in a flush: who looks without the lock must find one of the two.
      dirty.forEachRun { unflushed.insert($0) }
      dirty.drain {
        changed.append($0)
        unflushed.insert($0)
      }
      let found = split(changed)
      for run in found.pinned.union(found.lost).runs { dirty.insert(run) }
      for run in found.pages.runs { mark(run) }
      var failure: PinError?
      write(copies: found.pinned, &failure)
      _ = write(found.pages, isMarked: true, &failure)
      if let failure { throw failure }
    }
  }
}
