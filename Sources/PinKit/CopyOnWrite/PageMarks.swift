internal import Synchronization

/// One bit a page, in memory that the caller owns. Setting is safe from any thread and in signal handlers, and whoever sees a bit
/// sees all that was written before it was set.
@safe struct PageMarks: @unchecked Sendable {  // words are touched through atomics only
  private let words: UnsafeMutablePointer<Atomic<UInt64>>
  let pageCount: Int

  /// In bytes, whole cache lines.
  static func size(pageCount: Int) -> Int { (pageCount + 511) / 512 * 64 }

  /// `memory` must be zeroed, hold ``size(pageCount:)`` bytes and outlive the value.
  init(memory: UnsafeMutableRawPointer, pageCount: Int) {
    unsafe words = memory.bindMemory(to: Atomic<UInt64>.self, capacity: (pageCount + 63) / 64)
    self.pageCount = pageCount
  }

  /// The same for one of several that lie one after the other: `memory` begins behind it then.
  init(from memory: inout UnsafeMutableRawPointer, pageCount: Int) {
    unsafe self.init(memory: memory, pageCount: pageCount)
    unsafe memory += Self.size(pageCount: pageCount)
  }

  @inline(__always) func contains(_ page: Int) -> Bool { word(page >> 6) & (1 << UInt64(page & 63)) != 0 }

  @inline(__always) private func word(_ index: Int) -> UInt64 { unsafe words[index].load(ordering: .acquiring) }

  @inline(__always) func insert(_ pages: Range<Int>) {
    forEachWord(of: pages) { index, mask in unsafe _ = words[index].bitwiseOr(mask, ordering: .acquiringAndReleasing) }
  }

  /// Returns how many of them were not there.
  @inline(__always) func insertCounting(_ pages: Range<Int>) -> Int {
    var count = 0
    forEachWord(of: pages) { index, mask in
      let before = unsafe words[index].bitwiseOr(mask, ordering: .acquiringAndReleasing).oldValue
      count += (mask & ~before).nonzeroBitCount
    }
    return count
  }

  @inline(__always) func remove(_ pages: Range<Int>) {
    forEachWord(of: pages) { index, mask in
      // Reading an untouched word costs no memory.
      if word(index) & mask != 0 { unsafe _ = words[index].bitwiseAnd(~mask, ordering: .acquiringAndReleasing) }
    }
  }

  @inline(__always) private func forEachWord(of pages: Range<Int>, _ body: (Int, UInt64) -> Void) {
    var page = pages.lowerBound
    while page < pages.upperBound {
      let end = min(pages.upperBound, (page | 63) + 1)
      let count = end - page
      body(page >> 6, (count == 64 ? UInt64.max : (1 << UInt64(count)) - 1) << UInt64(page & 63))
      page = end
    }
  }

  /// The first page of `pages` whose bit is `isSet`; the end of `pages` if there is none.
  func first(in pages: Range<Int>, isSet: Bool) -> Int {
    var page = pages.lowerBound
    while page < pages.upperBound {
      let bits = (isSet ? word(page >> 6) : ~word(page >> 6)) >> UInt64(page & 63)
      if bits != 0 { return min(pages.upperBound, page + bits.trailingZeroBitCount) }
      page = (page | 63) + 1
    }
    return pages.upperBound
  }

  /// The pages of `range` whose bits are set.
  func pages(in range: Range<Int>) -> DirtySet {
    var found = DirtySet(pageCount: pageCount)
    var page = range.lowerBound
    while true {
      let start = first(in: page..<range.upperBound, isSet: true)
      if start == range.upperBound { return found }
      page = first(in: start..<range.upperBound, isSet: false)
      found.append(start..<page)
    }
  }
}
