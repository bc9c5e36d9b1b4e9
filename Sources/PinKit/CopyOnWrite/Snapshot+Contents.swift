internal import Synchronization

extension Snapshot {
  /// The pages that may hold anything but zeros, in order. All others read as zeros, but for the released ones and the guard pages that are left
  /// out below: reading those throws `.released` and `.inaccessible`.
  ///
  /// Of private anonymous memory these are the pages that had memory; of other memory, where a page can be in a file and not in the
  /// page table, all that are not known to be zeros. Released pages are not among them, nor are guard pages of adopted memory that were
  /// ones at the moment of the snapshot (Linux 6.15): those hold nothing. Reads no page, so it takes no memory.
  ///
  /// - Throws: As ``copy(_:into:)``.
  /// - Complexity: O(pages) with a small factor: a scan of the page table.
  public func storedRuns() throws(PinError) -> [Range<Int>] {
    let store = try openStore("ask a snapshot what it holds")
    let all = DirtySet(pageCount: pageCount, runs: CollectionOfOne(0..<pageCount))
    // First what is present, then what was kept. A page that is not kept even now is as it was, so it had memory then if it had
    // some when it was looked at, and none if it had none.
    let live = try liveRuns() ?? all
    var stored = DirtySet(pageCount: pageCount)
    var rest = all
    for store in store.chain {
      let captured = store.captured.pages(in: 0..<pageCount)
      let filled = store.filled.pages(in: 0..<pageCount)
      let taken = captured.subtracting(captured.subtracting(rest))
      stored.formUnion(filled.subtracting(filled.subtracting(taken)))
      // What has lost its bytes says so when it is read.
      let unreadable = store.unreadable.pages(in: 0..<pageCount)
      stored.formUnion(unreadable.subtracting(unreadable.subtracting(rest)))
      rest = rest.subtracting(captured)
    }
    stored.formUnion(live.subtracting(live.subtracting(rest)))
    if isClosed.load(ordering: .acquiring) { throw closed("ask a snapshot what it holds") }
    if let failure = failure(of: store) { throw failure }
    if let vacant = store.vacant.withLock({ $0 }) { stored = stored.subtracting(vacant) }
    return stored.subtracting(released.withLock { $0 }).runs
  }

  /// The pages of the region that hold something now; `nil` if that cannot be told without reading them.
  private func liveRuns() throws(PinError) -> DirtySet? {
    guard try enterRegion("ask a snapshot what it holds") else { return DirtySet(pageCount: pageCount) }
    defer { region.leave() }
    guard set.isPrivateAnonymous else { return nil }
    defer { set.settle() }
    // What became a guard page later had bytes, and says so when it is read.
    let present = unsafe set.presentPages(0..<pageCount, in: set.protection.domain.pointee)
    guard let present, let guards = set.guardPages(in: [0..<pageCount]) else { return present }
    return present.union(guards)
  }

  /// Calls `body` with the bytes of ``storedRuns()``, up to `chunk` pages at a time, in order.
  ///
  /// - Parameters:
  ///   - chunk: At least 1. Of a large one the call makes less: it takes 64 MiB of memory at the most, but a page always.
  ///   - body: Gets the pages and their bytes, which are its own until it returns.
  /// - Throws: As ``copy(_:into:)``, `.invalidArgument` for a chunk below 1; what `body` throws.
  public func forEachStoredRun(
    upTo chunk: Int = 64, _ body: (Range<Int>, UnsafeRawBufferPointer) throws -> Void
  ) throws {
    guard chunk > 0 else {
      throw PinError(
        .invalidArgument, operation: "read a snapshot up to \(chunk) pages at a time", advice: "Ask for one at least.")
    }
    let chunk = min(chunk, pageCount, max(1, Self.largestChunk / pageSize))
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: chunk * pageSize, alignment: 4096)
    defer {
      if region.hasSeals.load(ordering: .relaxed) { unsafe Memory.wipe(AddressRange(buffer)) }
      unsafe buffer.deallocate()
    }
    for run in try storedRuns() {
      for start in stride(from: run.lowerBound, to: run.upperBound, by: chunk) {
        let pages = start..<min(start + chunk, run.upperBound)
        let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<(pages.count * pageSize)])
        unsafe try copy(pages, into: bytes)
        try unsafe body(pages, UnsafeRawBufferPointer(bytes))
      }
    }
  }

  /// In bytes.
  private static var largestChunk: Int { 64 << 20 }

  /// The pages that may differ between an older snapshot of the same region and this one: those that were written or discarded in
  /// between, and those that were opened along with them (``DirtySet/faultAroundRuns``). `older` may be closed.
  ///
  /// - Throws: ``PinError`` `.invalidArgument` if `older` is of another region, newer, or from before ``Region/endSnapshots()``.
  public func changes(since older: Snapshot) throws(PinError) -> DirtySet {
    var changes = DirtySet(pageCount: pageCount)
    guard older.region === region else {
      throw PinError(.invalidArgument, operation: "compare snapshots", advice: "They are of different regions.")
    }
    var at = older.generation
    while at !== generation {
      guard let next = at.next else {
        throw PinError(
          .invalidArgument, operation: "compare snapshots",
          advice: "\(older.identity) was not taken before \(identity) under the same protection.")
      }
      changes.formUnion(next.changes)
      at = next
    }
    return changes
  }

  /// Owes `pages` to this snapshot no more, as they have been copied out: writers need not copy them, and copies of them are freed.
  /// Reading them throws `.released` from now on. Where older snapshots are open their copies stay.
  ///
  /// - Throws: ``PinError`` `.outOfBounds`, `.closed`, `.notInherited`, `.wouldDeadlock` from a fault callback.
  func release(_ pages: Range<Int>) throws(PinError) {
    _ = try region.addresses(of: pages)
    let store = try openStore("release pages of a snapshot")
    if pages.isEmpty { return }
    released.withLock { released in
      let run = DirtySet(pageCount: pageCount, runs: CollectionOfOne(pages))
      released = released.pageCount == 0 ? run : released.union(run)
      hasReleased.store(true, ordering: .sequentiallyConsistent)
    }
    set.release(pages, of: store)
  }
}
