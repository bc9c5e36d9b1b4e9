/// A set of pages, kept as sorted runs: what a tracker collected.
///
/// A value: it costs 16 bytes a run, whatever the region's size.
public struct DirtySet: Sendable, Hashable {
  /// The pages of the region it belongs to are `0 ..< pageCount`.
  public let pageCount: Int
  /// Maximal runs in ascending order: disjoint, and never adjacent.
  public private(set) var runs: [Range<Int>]
  /// Of ``runs``, the pages that were opened along with a neighbour: they may or may not have been written. Empty when the set is
  /// exact.
  public private(set) var faultAroundRuns: [Range<Int>]

  /// The empty set of a region with so many pages; with none for a number below 0.
  public init(pageCount: Int) {
    self.pageCount = Swift.max(0, pageCount)
    runs = []
    faultAroundRuns = []
  }

  /// A set of runs in any order, also overlapping; what lies outside `0 ..< pageCount` is cut off.
  public init(pageCount: Int, runs: some Sequence<Range<Int>>) {
    self.init(pageCount: pageCount)
    for run in runs.map({ $0.clamped(to: 0..<self.pageCount) }).sorted(by: { $0.lowerBound < $1.lowerBound }) {
      append(run)
    }
  }

  /// How many pages there are. O(runs).
  public var count: Int { runs.reduce(0) { $0 + $1.count } }
  public var isEmpty: Bool { runs.isEmpty }

  /// Whether every page in it is known to have been written.
  public var isExact: Bool { faultAroundRuns.isEmpty }

  /// The pages known to have been written: without those that were only opened along with a neighbour.
  public var exactPages: DirtySet {
    DirtySet(pageCount: pageCount, runs: runs).subtracting(DirtySet(pageCount: pageCount, runs: faultAroundRuns))
  }

  /// - Complexity: O(log runs).
  public func contains(_ page: Int) -> Bool {
    var low = 0
    var high = runs.count
    while low < high {
      let middle = (low + high) / 2
      if runs[middle].upperBound <= page { low = middle + 1 } else { high = middle }
    }
    return low < runs.count && runs[low].contains(page)
  }

  /// Whether it has none of `pages`.
  ///
  /// - Complexity: O(log runs).
  public func isDisjoint(with pages: Range<Int>) -> Bool {
    var low = 0
    var high = runs.count
    while low < high {
      let middle = (low + high) / 2
      if runs[middle].upperBound <= pages.lowerBound { low = middle + 1 } else { high = middle }
    }
    return low == runs.count || runs[low].lowerBound >= pages.upperBound
  }

  /// Every page, in order.
  public var pages: some Sequence<Int> { runs.lazy.joined() }

  // MARK: Building

  /// Adds a run that begins at or behind the start of the last one.
  mutating func append(_ run: Range<Int>, isFaultAround: Bool = false) {
    Self.append(run, to: &runs)
    if isFaultAround { Self.append(run, to: &faultAroundRuns) }
  }

  /// The same for all runs of another set.
  mutating func append(_ other: DirtySet) {
    for run in other.runs { append(run) }
    for run in other.faultAroundRuns { Self.append(run, to: &faultAroundRuns) }
  }

  @inline(__always) private static func append(_ run: Range<Int>, to runs: inout [Range<Int>]) {
    guard !run.isEmpty else { return }
    if let last = runs.last, run.lowerBound <= last.upperBound {
      runs[runs.count - 1] = last.lowerBound..<Swift.max(last.upperBound, run.upperBound)
    } else {
      runs.append(run)
    }
  }

  /// `runs` are pages of the set, maximal and in order.
  mutating func setFaultAround(_ runs: [Range<Int>]) { faultAroundRuns = runs }
}

extension DirtySet: Sequence {
  /// Iterates runs.
  public func makeIterator() -> IndexingIterator<[Range<Int>]> { runs.makeIterator() }
}

extension DirtySet {
  /// The pages of both. A page that one of the two knows to have been written is known to have been written.
  ///
  /// Sets of different ``pageCount`` belong to different regions, and joining them ends the program: compare first what was decoded.
  ///
  /// - Complexity: O(runs of both).
  public func union(_ other: DirtySet) -> DirtySet {
    precondition(pageCount == other.pageCount, "sets of regions of different size")
    if other.isEmpty { return self }
    if isEmpty { return other }
    var result = DirtySet(pageCount: pageCount)
    result.runs = Self.merge(runs, other.runs)
    if isExact, other.isExact { return result }
    let known = Self.merge(Self.difference(runs, faultAroundRuns), Self.difference(other.runs, other.faultAroundRuns))
    result.faultAroundRuns = Self.difference(result.runs, known)
    return result
  }

  public mutating func formUnion(_ other: DirtySet) { self = union(other) }

  /// The pages of this set that are not in the other.
  public func subtracting(_ other: DirtySet) -> DirtySet {
    if other.isEmpty { return self }
    var result = DirtySet(pageCount: pageCount)
    result.runs = Self.difference(runs, other.runs)
    result.faultAroundRuns = Self.difference(faultAroundRuns, other.runs)
    return result
  }

  private static func merge(_ a: [Range<Int>], _ b: [Range<Int>]) -> [Range<Int>] {
    var result: [Range<Int>] = []
    result.reserveCapacity(a.count + b.count)
    var (i, j) = (0, 0)
    while i < a.count || j < b.count {
      if j == b.count || (i < a.count && a[i].lowerBound <= b[j].lowerBound) {
        append(a[i], to: &result)
        i += 1
      } else {
        append(b[j], to: &result)
        j += 1
      }
    }
    return result
  }

  private static func difference(_ a: [Range<Int>], _ b: [Range<Int>]) -> [Range<Int>] {
    var result: [Range<Int>] = []
    var j = 0
    for run in a {
      var start = run.lowerBound
      while j < b.count, b[j].upperBound <= start { j += 1 }
      var k = j
      while k < b.count, b[k].lowerBound < run.upperBound {
        append(start..<Swift.max(start, b[k].lowerBound), to: &result)
        start = Swift.max(start, b[k].upperBound)
        k += 1
      }
      if start < run.upperBound { append(start..<run.upperBound, to: &result) }
    }
    return result
  }
}

extension DirtySet {
  /// Removes the first `count` runs.
  mutating func removeRuns(before count: Int) {
    guard count > 0 else { return }
    let end = runs[count - 1].upperBound
    runs.removeFirst(count)
    faultAroundRuns = faultAroundRuns.compactMap { run in
      let rest = Swift.max(run.lowerBound, end)..<Swift.max(run.upperBound, end)
      return rest.isEmpty ? nil : rest
    }
  }
}
