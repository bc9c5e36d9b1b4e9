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

  /// Whether a page's bit is set. What is set or cleared meanwhile may be missed.
  func contains(_ page: Int) -> Bool {
    // Who looks at two bitmaps, one after the other, does so in this order.
    unsafe word(0, page >> 6).pointee.load(ordering: .acquiring) & (1 << UInt64(page & 63)) != 0
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
    Self.forEachWord(of: pages) { index, mask in insert(mask, at: index) }
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
    Self.forEachWord(of: pages) { index, mask in
      let found = unsafe word(0, index)
      if unsafe found.pointee.load(ordering: .acquiring) & mask != mask {
        unsafe _ = found.pointee.bitwiseOr(mask, ordering: .sequentiallyConsistent)
      }
      insertVisibly(index << 6 | mask.trailingZeroBitCount)
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
    // Reading an untouched word costs no memory, exchanging it does. What is set just now is the next drain's.
    if unsafe word(levels - 1, 0).pointee.load(ordering: .relaxed) == 0 { return }
    var joined = JoinedRuns()
    walk(level: levels - 1, index: 0, clears: true) { joined.add($0, body) }
    joined.end(body)
  }

  /// The same for `pages`. What is above says then that there may be some, which costs a look. What is set just now is the next drain's.
  func drain(_ pages: Range<Int>, _ body: (Range<Int>) -> Void) {
    var joined = JoinedRuns()
    Self.forEachWord(of: pages) { index, mask in
      let found = unsafe word(0, index)
      if unsafe found.pointee.load(ordering: .relaxed) & mask == 0 { return }
      let bits = unsafe found.pointee.bitwiseAnd(~mask, ordering: .acquiringAndReleasing).oldValue & mask
      Self.forEachRun(of: bits, at: index) { joined.add($0, body) }
    }
    joined.end(body)
  }

  /// Makes maximal runs of runs in order.
  private struct JoinedRuns {
    private var run = 0..<0

    @inline(__always) mutating func add(_ next: Range<Int>, _ body: (Range<Int>) -> Void) {
      if run.upperBound == next.lowerBound, !run.isEmpty {
        run = run.lowerBound..<next.upperBound
      } else {
        if !run.isEmpty { body(run) }
        run = next
      }
    }

    @inline(__always) func end(_ body: (Range<Int>) -> Void) { if !run.isEmpty { body(run) } }
  }

  /// From the first bit that is set at or behind `start`, so far that about `pages` bits in about `runs` runs are set; and whether nothing is
  /// set behind them. `nil` if nothing is set from `start` on. What is set meanwhile may be missed.
  func window(from start: Int, pages: Int, runs: Int) -> (pages: Range<Int>, isLast: Bool)? {
    guard let first = first(from: start, where: { _ in true }) else { return nil }
    var (next, end) = (first, first)
    var (foundPages, foundRuns) = (0, 0)
    while true {
      if foundPages >= pages || foundRuns >= runs { return (first..<end, false) }
      let base = next & ~63
      let bits = unsafe word(0, base >> 6).pointee.load(ordering: .relaxed) & UInt64.max << UInt64(next & 63)
      // A run may go on from the word before.
      foundRuns += (bits & ~(bits << 1)).nonzeroBitCount - (end == next && next > first ? 1 : 0)
      foundPages += bits.nonzeroBitCount
      end = max(next + 1, base + 64 - bits.leadingZeroBitCount)
      guard let following = self.first(from: base + 64, where: { _ in true }) else { return (first..<end, true) }
      next = following
    }
  }

  /// Calls `body` with runs of set bits, in order; they need not be maximal.
  func forEachRun(_ body: (Range<Int>) -> Void) { walk(level: levels - 1, index: 0, clears: false, body) }

  /// The same for `pages`; costs in proportion to what is set there.
  func forEachRun(in pages: Range<Int>, _ body: (Range<Int>) -> Void) {
    var start = pages.lowerBound
    while start < pages.upperBound, let page = first(from: start, where: { _ in true }), page < pages.upperBound {
      let end = min(pages.upperBound, (page | 63) + 1)
      let bits = unsafe word(0, page >> 6).pointee.load(ordering: .acquiring)
      Self.forEachRun(of: bits & Self.mask(page..<end), at: page >> 6, body)
      start = end
    }
  }

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
    if level == 0 { return Self.forEachRun(of: bits, at: index, body) }
    while bits != 0 {
      walk(level: level - 1, index: index << 6 | bits.trailingZeroBitCount, clears: clears, body)
      bits &= bits - 1
    }
  }

  /// The runs of a word of the lowest level.
  @inline(__always) private static func forEachRun(of word: UInt64, at index: Int, _ body: (Range<Int>) -> Void) {
    var bits = word
    while bits != 0 {
      let low = bits.trailingZeroBitCount
      let length = (~(bits >> UInt64(low))).trailingZeroBitCount
      let start = index << 6 | low
      body(start..<start + length)
      if low + length >= 64 { return }
      bits &= ~(((1 << UInt64(length)) - 1) << UInt64(low))
    }
  }

  /// Calls `body` with each word of the lowest level that has bits of `pages`, and with those bits.
  @inline(__always) private static func forEachWord(of pages: Range<Int>, _ body: (_ index: Int, _ mask: UInt64) -> Void) {
    var page = pages.lowerBound
    while page < pages.upperBound {
      let end = min(pages.upperBound, (page | 63) + 1)
      body(page >> 6, mask(page..<end))
      page = end
    }
  }

  /// The bits of pages in one word.
  @inline(__always) private static func mask(_ pages: Range<Int>) -> UInt64 {
    (pages.count == 64 ? UInt64.max : (1 << UInt64(pages.count)) - 1) << UInt64(pages.lowerBound & 63)
  }
}
