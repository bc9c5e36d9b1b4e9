import Glibc
import Testing

@testable import PinKit

@Suite("Snapshots") struct SnapshotTests {
  private func with(_ subject: Subject, pages: Int, _ body: (Region) throws -> Void) throws {
    let space = try AddressSpace.forTests()
    try subject.with(space, pages: pages, body)
    try space.close()
  }

  @Test("W6: a snapshot holds what was there, whatever is written after it", arguments: Combination.snapshots)
  func holds(_ combination: Combination) throws {
    let pages = combination.subject == .hugetlb ? 4 : 200
    try with(combination.subject, pages: pages) { region in
      let some = stride(from: 0, to: pages, by: 2)
      try region.write(version: 1, to: some)
      let snapshot = try region.snapshot(.init(mechanism: combination.mechanism))
      let expected = { $0 % 2 == 0 ? UInt64(1) : 0 }
      #expect(try snapshot.pages(unlike: expected) == [])
      let changed = stride(from: 0, to: pages, by: 3)
      try region.write(version: 2, to: changed)
      #expect(try snapshot.pages(unlike: expected) == [])
      #expect(try snapshot.singlePages(unlike: expected) == [])
      // The region has the new bytes.
      for page in changed {
        #expect(
          try region.load(fromByteOffset: (page + 1) * region.pageSize - region.pageSize / 64, as: UInt64.self)
            == Pattern.word(page, 2, region.pageSize - region.pageSize / 64))
      }
      // Once more over everything: nothing is copied twice.
      try region.write(version: 3, to: 0..<pages)
      let bytes = snapshot.capturedBytes
      try region.write(version: 4, to: 0..<pages)
      #expect(snapshot.capturedBytes == bytes)
      #expect(bytes == some.reduce(0) { sum, _ in sum + region.pageSize })
      #expect(try snapshot.pages(unlike: expected) == [])
      #expect(snapshot.pause > 0)
      snapshot.close()
      #expect(code { _ = try snapshot.read(0) } == .closed)
    }
  }

  @Test("W6: each of several snapshots holds its own moment, in whatever order they close", arguments: Combination.snapshots)
  func several(_ combination: Combination) throws {
    let pages = combination.subject == .hugetlb ? 4 : 96
    var random = SeededRandom(seed: 7)
    try with(combination.subject, pages: pages) { region in
      var versions = [UInt64](repeating: 0, count: pages)
      var open: [(snapshot: Snapshot, versions: [UInt64])] = []
      for round in 1...24 {
        let snapshot = try region.snapshot(.init(mechanism: combination.mechanism))
        open.append((snapshot, versions))
        for page in 0..<pages where random.chance(30) {
          try region.write(version: UInt64(round), to: CollectionOfOne(page))
          versions[page] = UInt64(round)
        }
        for (snapshot, versions) in open { #expect(try snapshot.pages(unlike: { versions[$0] }) == []) }
        while open.count > 3 || (!open.isEmpty && random.chance(20)) {
          open.remove(at: Int.random(in: 0..<open.count, using: &random)).snapshot.close()
        }
      }
    }
  }
}
