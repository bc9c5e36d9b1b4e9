import Testing

@testable import PinKit

@Suite("Dirty set") struct DirtySetTests {
  private func set(_ pageCount: Int, _ runs: [Range<Int>], around: [Range<Int>] = []) -> DirtySet {
    let aroundPages = Set(around.joined())
    var set = DirtySet(pageCount: pageCount)
    for page in Set(runs.joined()).union(aroundPages).sorted() {
      set.append(page..<page + 1, isFaultAround: aroundPages.contains(page))
    }
    return set
  }

  @Test("runs are maximal, sorted and inside the region") func runs() {
    let made = DirtySet(pageCount: 100, runs: [90..<200, 3..<5, 5..<7, 4..<6, -3..<1, 20..<20, 50..<51])
    #expect(made.runs == [0..<1, 3..<7, 50..<51, 90..<100])
    #expect(made.count == 16)
    #expect(Array(made.pages) == [0, 3, 4, 5, 6, 50] + Array(90..<100))
    #expect(Array(made) == made.runs)
    #expect(DirtySet(pageCount: 10).isEmpty)
    #expect(DirtySet(pageCount: 0, runs: [0..<5]).isEmpty)
  }

  @Test("contains agrees with the runs on every page") func contains() {
    let made = DirtySet(pageCount: 40, runs: [0..<1, 3..<7, 39..<40])
    let inside = Set(made.pages)
    for page in -2..<45 { #expect(made.contains(page) == inside.contains(page)) }
    #expect(!DirtySet(pageCount: 4).contains(0))
  }

  @Test("fault-around pages are apart from those known to be written") func faultAround() {
    let made = set(64, [10..<11, 30..<32], around: [11..<14])
    #expect(made.runs == [10..<14, 30..<32])
    #expect(made.faultAroundRuns == [11..<14])
    #expect(!made.isExact)
    #expect(made.exactPages.runs == [10..<11, 30..<32])
    #expect(made.exactPages.isExact)
  }

  @Test("a page that either of two sets knows to be written is known in their union") func unionOfKnowledge() {
    let a = set(64, [1..<2], around: [2..<5])
    let b = set(64, [3..<4], around: [4..<6])
    let both = a.union(b)
    #expect(both.runs == [1..<6])
    #expect(both.exactPages.runs == [1..<2, 3..<4])
    #expect(both.faultAroundRuns == [2..<3, 4..<6])
    #expect(both == b.union(a))
    #expect(a.union(DirtySet(pageCount: 64)) == a)
    #expect(DirtySet(pageCount: 64).union(a) == a)
  }

  @Test("union and difference agree with sets of integers") func algebra() {
    var random = SeededRandom(seed: 11)
    func make() -> (DirtySet, exact: Set<Int>, around: Set<Int>) {
      var exact = Set<Int>()
      var around = Set<Int>()
      for page in 0..<70 where random.chance(50) {
        if random.chance(30) { around.insert(page) } else { exact.insert(page) }
      }
      return (set(70, exact.map { $0..<$0 + 1 }, around: around.map { $0..<$0 + 1 }), exact, around)
    }
    for _ in 0..<200 {
      let (a, aExact, aAround) = make()
      let (b, bExact, bAround) = make()
      #expect(Set(a.exactPages.pages) == aExact)
      let union = a.union(b)
      #expect(Set(union.pages) == aExact.union(aAround).union(bExact).union(bAround))
      #expect(Set(union.exactPages.pages) == aExact.union(bExact))
      #expect(isWellFormed(union))
      let rest = a.subtracting(b)
      #expect(Set(rest.pages) == aExact.union(aAround).subtracting(bExact.union(bAround)))
      #expect(Set(rest.exactPages.pages) == aExact.subtracting(bExact.union(bAround)))
      #expect(isWellFormed(rest))
    }
  }

  private func isWellFormed(_ set: DirtySet) -> Bool {
    for runs in [set.runs, set.faultAroundRuns] {
      for (a, b) in zip(runs, runs.dropFirst()) where a.upperBound >= b.lowerBound { return false }
      if runs.contains(where: \.isEmpty) { return false }
    }
    return true
  }

  @Test("removing the first runs keeps the rest, fault-around pages too") func removeRuns() {
    var made = set(64, [1..<3, 20..<21], around: [3..<5, 21..<23])
    made.removeRuns(before: 0)
    #expect(made.count == 7)
    made.removeRuns(before: 1)
    #expect(made.runs == [20..<23])
    #expect(made.faultAroundRuns == [21..<23])
    made.removeRuns(before: 1)
    #expect(made.isEmpty && made.isExact)
  }

  @Test("a bitmap survives the way there and back", arguments: [1, 7, 8, 63, 64, 65, 128, 1000])
  func bitmap(_ pageCount: Int) throws {
    var random = SeededRandom(seed: UInt64(pageCount))
    for share in [0, 3, 50, 97, 100] {
      let pages = (0..<pageCount).filter { _ in random.chance(share) }
      let made = DirtySet(pageCount: pageCount, runs: pages.map { $0..<$0 + 1 })
      let bytes = made.bitmap()
      #expect(bytes.count == (pageCount + 63) / 64 * 8)
      for page in 0..<pageCount { #expect((bytes[page / 8] >> UInt8(page % 8) & 1 == 1) == made.contains(page)) }
      #expect(try DirtySet(pageCount: pageCount, bitmap: bytes) == made)
    }
  }

  @Test("a malformed bitmap is refused") func malformedBitmap() {
    let cases: [(pageCount: Int, bytes: [UInt8])] = [
      (64, []), (64, .init(repeating: 0, count: 7)), (64, .init(repeating: 0, count: 9)),
      (65, .init(repeating: 0, count: 8)),
      (60, .init(repeating: 0xff, count: 8)), (1, [2, 0, 0, 0, 0, 0, 0, 0]), (1, [0, 0, 0, 0, 0, 0, 0, 0x80]),
    ]
    for (pageCount, bytes) in cases {
      let error = #expect(throws: PinError.self) { try DirtySet(pageCount: pageCount, bitmap: bytes) }
      #expect(error?.code == .invalidArgument)
    }
  }
}
