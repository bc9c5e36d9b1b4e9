import Glibc
import Testing

@testable import PinKit

/// The scenes of the kernel's own tests of write tracking, as far as they apply, under every mechanism on every backing: the same
/// thing happens each time.
@Suite("Mechanism scenarios", .serialized) struct MechanismScenarioTests {
  private func with(
    _ combination: Combination, pages: Int = 8, filled: Bool = true, _ body: (Region, WriteTracker) throws -> Void
  ) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: pages) { region in
      if filled { try region.fill(with: 1) }
      let tracker = try region.trackWrites(combination.mechanism)
      try body(region, tracker)
      try tracker.stop()
    }
    try space.close()
  }

  private func write(_ pages: some Sequence<Int>, _ region: Region, _ value: UInt8 = 7) throws {
    for page in pages { try region.store(value, toByteOffset: page * region.pageSize + 5) }
  }

  private func read(_ pages: some Sequence<Int>, _ region: Region) throws -> [UInt8] {
    try pages.map { try region.load(fromByteOffset: $0 * region.pageSize + 5, as: UInt8.self) }
  }

  @Test("K1: pages that were never touched are clean, and reading leaves them so", arguments: Combination.all)
  func unpopulated(_ combination: Combination) throws {
    try with(combination, filled: false) { region, tracker in
      #expect(try tracker.collect().isEmpty)
      #expect(try read(0..<8, region).allSatisfy { $0 == 0 })
      #expect(try tracker.collect().isEmpty)
      #expect(try tracker.collect().isEmpty)
      try write([3], region)
      #expect(try tracker.collect().runs == [3..<4])
      try write([2, 3, 6], region)
      #expect(try tracker.collect().runs == [2..<4, 6..<7])
    }
  }

  @Test("K1: what was written is found, whatever its pattern", arguments: Combination.all)
  func patterns(_ combination: Combination) throws {
    try with(combination) { region, tracker in
      #expect(try tracker.collect().isEmpty)
      let patterns: [[Int]] = [
        Array(0..<8), Array(1..<7), [4], [4, 5], [0, 2, 4, 6], [1, 3, 5, 7], [0, 7], [0], [7], [],
      ]
      for pattern in patterns {
        try write(pattern, region)
        #expect(Array(try tracker.collect().pages) == pattern)
        _ = try read(0..<8, region)
        #expect(try tracker.collect().isEmpty)
      }
    }
  }

  @Test("K1: hundreds of collections in a row, each exact", arguments: Combination.all)
  func manyCollections(_ combination: Combination) throws {
    try with(combination) { region, tracker in
      var random = SeededRandom(seed: 3)
      for _ in 0..<150 {
        let pages = (0..<8).filter { _ in random.chance(25) }
        for _ in 0..<2 { try write(pages, region) }
        #expect(Array(try tracker.collect().pages) == pages)
      }
    }
  }

  @Test("K1: discarded pages count as written, read as zeros, and are watched again", arguments: Combination.discardable)
  func discarded(_ combination: Combination) throws {
    try with(combination) { region, tracker in
      try region.discard(2..<4)
      #expect(try tracker.collect().runs == [2..<4])
      #expect(try read(1..<5, region).allSatisfy { $0 == 0 })
      #expect(try tracker.collect().isEmpty)
      try write([3], region)
      #expect(try tracker.collect().runs == [3..<4])
      // Written, discarded, written again: once.
      try write([5, 6], region)
      try region.discard(5..<7)
      try write([6], region)
      #expect(try tracker.collect().runs == [5..<7])
      #expect(try read([5, 6], region) == [0, 7])
      #expect(try tracker.collect().isEmpty)
      try write([5], region)
      #expect(try tracker.collect().runs == [5..<6])
    }
  }

  @Test("K1: a huge page splits, and only what was written of it is dirty", arguments: Mechanisms.all)
  func hugePages(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .prefer), pages: 2048)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    #expect(try tracker.collect().isEmpty)
    try write([700, 701, 2047], region)
    #expect(try tracker.collect().runs == [700..<702, 2047..<2048])
    try write([0, 700], region)
    #expect(try tracker.collect().runs == [0..<1, 700..<701])
    try write(0..<2048, region)
    #expect(try tracker.collect().runs == [0..<2048])
    #expect(try tracker.collect().isEmpty)
    try space.close()
  }

  @Test("K1: untouched memory that may get huge pages is tracked by small ones", arguments: Mechanisms.all)
  func hugePagesToCome(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .prefer), pages: 1024)
    let tracker = try region.trackWrites(mechanism)
    _ = try read([600], region)
    try write([5], region)
    #expect(try tracker.collect().runs == [5..<6])
    try write([600], region)
    #expect(try tracker.collect().runs == [600..<601])
    try space.close()
  }

  @Test("each of two trackers has its own view", arguments: Combination.all)
  func twoTrackers(_ combination: Combination) throws {
    try with(combination) { region, first in
      try write([1], region)
      let second = try region.trackWrites()
      #expect(second.mechanism == combination.mechanism)
      try write([2], region)
      #expect(try second.collect().runs == [2..<3])
      try write([4], region)
      #expect(try first.collect().runs == [1..<3, 4..<5])
      try first.pause()
      try write([5], region)
      #expect(try first.collect().isEmpty)
      try first.resume()
      try write([6], region)
      #expect(try first.collect().runs == [6..<7])
      #expect(try second.collect().runs == [4..<7])
      try second.stop()
      let error = #expect(throws: PinError.self) { try second.collect() }
      #expect(error?.code == .stopped)
      try write([0], region)
      #expect(try first.collect().runs == [0..<1])
    }
  }
}
