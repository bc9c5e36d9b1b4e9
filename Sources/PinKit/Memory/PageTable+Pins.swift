internal import Synchronization

extension PageTable.Entry {
  /// It is pinned for writing, or was since the last collection: what is written through a pin raises no fault (P6).
  static let wasPinnedForWriting = PageTable.Entry(rawValue: 1 << 8)
  /// One pin of each kind.
  static let pinForWriting: UInt64 = 1 << 9
  static let pinForReading: UInt64 = 1 << 20
  static let maximumPinsForWriting = 0x7ff
  static let maximumPinsForReading = 0xfff

  static let claimedOrCleared = PageTable.Entry(rawValue: 1 << 0 | 1 << 7)

  @inline(__always) var pinsForWriting: Int { Int(rawValue >> 9 & 0x7ff) }
  @inline(__always) var pinsForReading: Int { Int(rawValue >> 20 & 0xfff) }
  @inline(__always) var isPinned: Bool { rawValue & 0xffff_fe00 != 0 }
}

/// Pins are counted in the page table, so that counting one is one step together with looking at the page's flags.
///
/// A pin that is being taken is counted first, noted in ``PageTable/pinned``, and then given up again if an exclusive operation
/// (``FaultDomain/generation``) or a drop (``PinGate``) may have missed it. So a count may be too high for a moment, and is never too low (P4).
extension PageTable {
  /// Counts a pin unless the entry has one of `refused` or lacks one of `required`. Returns the entry after.
  @inline(__always) func addPin(
    _ page: Int, forWriting: Bool, refused: UInt64, required: UInt64
  ) -> Entry? {
    let unit = forWriting ? Entry.pinForWriting : Entry.pinForReading
    let mark = forWriting ? Entry.wasPinnedForWriting.rawValue : 0
    let field: UInt64 = forWriting ? 0x7ff << 9 : 0xfff << 20
    var before = unsafe entries[page].load(ordering: .relaxed)
    while true {
      guard before & refused == 0, before & required == required, before & field != field else { return nil }
      let after = (before + unit) | mark
      let (done, seen) = unsafe entries[page].compareExchange(
        expected: before, desired: after, ordering: .sequentiallyConsistent)
      if done { return Entry(rawValue: after) }
      before = seen
    }
  }

  /// Whether the entry has room for one more.
  func hasRoomForPin(_ page: Int, forWriting: Bool) -> Bool {
    let entry = self[page]
    return forWriting
      ? entry.pinsForWriting < Entry.maximumPinsForWriting : entry.pinsForReading < Entry.maximumPinsForReading
  }

  /// Takes a pin off the count. Whatever was written through it comes before.
  @inline(__always) func removePin(_ page: Int, forWriting: Bool) {
    unsafe _ = entries[page].subtract(
      forWriting ? Entry.pinForWriting : Entry.pinForReading, ordering: .sequentiallyConsistent)
  }

  /// What the entry says, in one order with every count.
  @inline(__always) func current(_ page: Int) -> Entry {
    Entry(rawValue: unsafe entries[page].load(ordering: .sequentiallyConsistent))
  }

  /// Has the next collection report `pages`.
  func markWritten(_ pages: Range<Int>) {
    for page in pages { insert(.wasPinnedForWriting, at: page) }
    pinned.insertVisibly(pages)
  }

  /// Calls `body` with every one of `pages` that is pinned.
  func forEachPinned(in pages: Range<Int>, _ body: (Int, Entry) -> Void) {
    if pinned.isEmpty { return }
    func look(_ run: Range<Int>) {
      for page in run {
        let entry = current(page)
        if entry.isPinned { body(page, entry) }
      }
    }
    if pages.count <= 64 { return look(pages) }
    pinned.forEachRun(in: pages, look)
  }

  /// The first page from `start` on that is pinned.
  func firstPinned(from start: Int) -> Int? { pinned.first(from: start) { current($0).isPinned } }

  /// The runs of `pages` that are pinned.
  func pinnedRuns(in pages: Range<Int>) -> [Range<Int>] {
    var runs: [Range<Int>] = []
    forEachPinned(in: pages) { page, _ in
      if let last = runs.last, last.upperBound == page {
        runs[runs.count - 1] = last.lowerBound..<page + 1
      } else {
        runs.append(page..<page + 1)
      }
    }
    return runs
  }

  /// Calls `body` with every page that is pinned for writing, or was since the last call, and forgets those that are not any more.
  /// Returns how many pages of the index are there for nothing.
  func takeWritten(_ body: (Int) -> Void) -> Int {
    var stale = 0
    pinned.forEachRun { run in
      for page in run {
        var entry = current(page)
        if entry.contains(.wasPinnedForWriting) { body(page) }
        while entry.contains(.wasPinnedForWriting), entry.pinsForWriting == 0 {
          let (done, seen) = unsafe entries[page].compareExchange(
            expected: entry.rawValue, desired: entry.subtracting(.wasPinnedForWriting).rawValue,
            ordering: .sequentiallyConsistent)
          if done { break }
          entry = Entry(rawValue: seen)
        }
        if !entry.isPinned { stale += 1 }
      }
    }
    return stale
  }

  /// Takes pages off the index that are not pinned. Nobody pins meanwhile: the gate of the region is held for a drop.
  func forgetUnpinned() {
    pinned.forEachRun { run in
      for page in run where !current(page).isPinned && !current(page).contains(.wasPinnedForWriting) {
        pinned.remove(page)
        // Somebody who is about to give up again, or a mark that was set just now.
        let entry = current(page)
        if entry.isPinned || entry.contains(.wasPinnedForWriting) { pinned.insertVisibly(page) }
      }
    }
  }
}
