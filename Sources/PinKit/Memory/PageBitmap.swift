internal import Synchronization

/// A bitmap over page indices with summaries above it, so that finding what is set costs in proportion to what is set.
///
/// Level 0 has a bit a page; a bit of each level above says that a word of the level below is not zero. The memory is mapped
/// without reservation and costs nothing until a bit in its page is set.
///
/// Setting is safe from any thread and in signal handlers, also beside a drain: what is set meanwhile is found by this drain or the next,
/// since a drain takes a word's mark away before it takes the word.
@safe struct PageBitmap: @unchecked Sendable {  // words are touched through atomics only
  typealias Words = UnsafeMutablePointer<Atomic<UInt64>>
  /// Where each level begins; the top level has one word.
  private let bases: InlineArray<8, Words>
  private let levels: Int
  let pageCount: Int

  /// In bytes, for so many pages; the top level is not in it.
  static func size(pageCount: Int) -> Int {
    var words = 0
    var count = (pageCount + 63) / 64
    while count > 1 {
      words += count
      count = (count + 63) / 64
    }
    return words * 8
  }

  /// `memory` must be zeroed, hold ``size(pageCount:)`` bytes and outlive the value; so must `top`, one zeroed word. The top is apart
  /// so that asking several bitmaps whether they are empty touches one page of memory.
  init(memory: UnsafeMutableRawPointer, top: Words, pageCount: Int) {
    var bases = unsafe InlineArray<8, Words>(repeating: top)
    var level = 0
    var offset = 0
    var count = (pageCount + 63) / 64
    while count > 1 {
      unsafe bases[level] = (memory + offset).bindMemory(to: Atomic<UInt64>.self, capacity: count)
      offset += count * 8
      count = (count + 63) / 64
      level += 1
    }
    unsafe self.bases = bases
    levels = level + 1
    self.pageCount = pageCount
  }

  @inline(__always) private func word(_ level: Int, _ index: Int) -> Words { unsafe bases[level] + index }

  func contains(_ page: Int) -> Bool {
    unsafe word(0, page >> 6).pointee.load(ordering: .relaxed) & (1 << UInt64(page & 63)) != 0
  }

  var isEmpty: Bool { unsafe word(levels - 1, 0).pointee.load(ordering: .acquiring) == 0 }

  /// Whether no bit of `pages`, which begin and end with a word of 64, is set.
  func isEmpty(in pages: Range<Int>) -> Bool {
    for index in pages.lowerBound >> 6..<(pages.upperBound + 63) >> 6
    where unsafe word(0, index).pointee.load(ordering: .acquiring) != 0 {
      return false
    }
    return true
  }

  /// Sets the bits of `pages`.
  @inline(__always) func insert(_ pages: Range<Int>) {
    var page = pages.lowerBound
    while page < pages.upperBound {
      let end = min(pages.upperBound, (page | 63) + 1)
      let count = end - page
      let mask = (count == 64 ? UInt64.max : (1 << UInt64(count)) - 1) << UInt64(page & 63)
      insert(mask, at: page >> 6)
      page = end
    }
  }

  @inline(__always) private func insert(_ mask: UInt64, at index: Int) {
    var index = index
    var mask = mask
    for level in 0..<levels {
      let old = unsafe word(level, index).pointee.bitwiseOr(mask, ordering: .acquiringAndReleasing).oldValue
      // Whoever made the word non-zero has announced it above, or is about to before it leaves the wrprotect lock.
      if old != 0 { return }
      mask = 1 << UInt64(index & 63)
      index >>= 6
    }
  }

  /// Sets one bit, for callers without the wrprotect lock: when it returns, whoever walks the bitmap finds the bit, also if another thread
  /// has made the word non-zero and has not announced that above yet.
  @inline(__always) func insertVisibly(_ page: Int) {
    var index = page
    for level in 0..<levels {
      let mask: UInt64 = 1 << UInt64(index & 63)
      index >>= 6
      let found = unsafe word(level, index)
      if unsafe found.pointee.load(ordering: .acquiring) & mask == 0 {
        unsafe _ = found.pointee.bitwiseOr(mask, ordering: .sequentiallyConsistent)
      }
    }
  }

  /// The same for several.
  func insertVisibly(_ pages: Range<Int>) {
    var page = pages.lowerBound
    while page < pages.upperBound {
      let end = min(pages.upperBound, (page | 63) + 1)
      let mask = (end - page == 64 ? UInt64.max : (1 << UInt64(end - page)) - 1) << UInt64(page & 63)
      let found = unsafe word(0, page >> 6)
      if unsafe found.pointee.load(ordering: .acquiring) & mask != mask {
        unsafe _ = found.pointee.bitwiseOr(mask, ordering: .sequentiallyConsistent)
      }
      insertVisibly(page)
      page = end
    }
  }

  /// Clears bits of the lowest level; what is above says then that there may be some, which costs a look.
  func remove(_ page: Int) {
    unsafe _ = word(0, page >> 6).pointee.bitwiseAnd(~(1 << UInt64(page & 63)), ordering: .sequentiallyConsistent)
  }

  /// From the first bit that is set to behind the last; `nil` if none is. What is set meanwhile may be missed.
  var bounds: Range<Int>? {
    var bounds: Range<Int>?
    forEachRun { run in bounds = (bounds?.lowerBound ?? run.lowerBound)..<run.upperBound }
    return bounds
  }

  /// Clears every bit, calling `body` with each maximal run that was set, in order.
  func drain(_ body: (Range<Int>) -> Void) {
    // Reading an untouched word costs no memory, exchanging it does.
    if unsafe word(levels - 1, 0).pointee.load(ordering: .relaxed) == 0 { return }
    var run = 0..<0
    walk(level: levels - 1, index: 0, clears: true) { found in
      if run.upperBound == found.lowerBound, !run.isEmpty {
        run = run.lowerBound..<found.upperBound
      } else {
        if !run.isEmpty { body(run) }
        run = found
      }
    }
    if !run.isEmpty { body(run) }
  }

  /// Calls `body` with runs of set bits, in order; they need not be maximal.
  func forEachRun(_ body: (Range<Int>) -> Void) { walk(level: levels - 1, index: 0, clears: false, body) }

  /// The first page from `start` on whose bit is set, and that `isWanted`.
  func first(from start: Int, where isWanted: (Int) -> Bool) -> Int? {
    first(level: levels - 1, index: 0, from: start, where: isWanted)
  }

  private func first(level: Int, index: Int, from start: Int, where isWanted: (Int) -> Bool) -> Int? {
    var bits = unsafe word(level, index).pointee.load(ordering: .acquiring)
    // Of the bits here, each of which stands for 64 to the power of the level, those before `start` are passed over.
    let passed = (start >> (6 * level)) - index << 6
    if passed > 63 { return nil }
    if passed > 0 { bits &= UInt64.max << UInt64(passed) }
    while bits != 0 {
      let at = index << 6 | bits.trailingZeroBitCount
      if level == 0 {
        if isWanted(at) { return at }
      } else if let found = first(level: level - 1, index: at, from: start, where: isWanted) {
        return found
      }
      bits &= bits - 1
    }
    return nil
  }

  private func walk(level: Int, index: Int, clears: Bool, _ body: (Range<Int>) -> Void) {
    let word = unsafe word(level, index)
    var bits =
      unsafe clears ? word.pointee.exchange(0, ordering: .acquiringAndReleasing) : word.pointee.load(ordering: .acquiring)
    while bits != 0 {
      let low = bits.trailingZeroBitCount
      if level > 0 {
        walk(level: level - 1, index: index << 6 | low, clears: clears, body)
        bits &= bits - 1
        continue
      }
      let length = (~(bits >> UInt64(low))).trailingZeroBitCount
      let start = index << 6 | low
      body(start..<start + length)
      if low + length >= 64 { break }
      bits &= ~(((1 << UInt64(length)) - 1) << UInt64(low))
    }
  }
}
