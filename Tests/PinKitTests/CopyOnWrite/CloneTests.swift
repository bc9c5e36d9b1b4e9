import Testing
@testable import PinKit

@Suite("Clones")
struct CloneTests {
  private static let pages = 64

  private func fill(_ region: Region, _ value: (Int) -> UInt64) throws {
    for page in 0..<region.pageCount { try region.store(value(page), toByteOffset: page * region.pageSize) }
  }

  private func value(_ region: Region, _ page: Int) throws -> UInt64 {
    try region.load(fromByteOffset: page * region.pageSize)
  }

  @Test(
    "W5: what either side writes stays its own", arguments: [WriteTracking.Mechanism.handlerThread, .inPlace, .mprotect])
  func isolation(mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace()
    defer { try? space.close() }
    let region = try space.map(.pool, pages: Self.pages)
    try fill(region) { UInt64($0) + 1 }
    let clone = try region.clone(mechanism: mechanism)
    for page in stride(from: 0, to: Self.pages, by: 3) { try region.store(UInt64(1000 + page), toByteOffset: page * 4096) }
    for page in stride(from: 1, to: Self.pages, by: 3) { try clone.store(UInt64(2000 + page), toByteOffset: page * 4096) }
    for page in 0..<Self.pages {
      #expect(try value(region, page) == UInt64(page % 3 == 0 ? 1000 + page : page + 1), "page \(page)")
      #expect(try value(clone, page) == UInt64(page % 3 == 1 ? 2000 + page : page + 1), "page \(page)")
    }
    let second = try clone.clone(mechanism: mechanism)
    for page in 0..<Self.pages { try clone.store(UInt64(3000 + page), toByteOffset: page * 4096) }
    for page in 0..<Self.pages {
      #expect(try value(second, page) == UInt64(page % 3 == 1 ? 2000 + page : page + 1), "page \(page)")
    }
  }

  @Test("Frames are counted to zero when clones are unmapped in any order")
  func freed() throws {
    let space = try AddressSpace()
    defer { try? space.close() }
    let pool = try space.framePool()
    var regions = [try space.map(.pool, pages: Self.pages)]
    try fill(regions[0]) { UInt64($0) }
    var random = SeededRandom(seed: Seed.of(Self.pages))
    for round in 0..<20 {
      let parent = regions.randomElement(using: &random)!
      regions.append(try parent.clone())
      for _ in 0..<10 {
        try regions.randomElement(using: &random)!.store(
          UInt64(round), toByteOffset: Int.random(in: 0..<Self.pages, using: &random) * 4096)
      }
    }
    for region in regions.shuffled(using: &random) { try region.unmap() }
    let usage = pool.usage
    #expect(usage == FramePool.Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0))
  }

  @Test("Ten thousand clones, created and dropped")
  func many() throws {
    let space = try AddressSpace()
    defer { try? space.close() }
    let pool = try space.framePool()
    let region = try space.map(.pool, pages: Self.pages)
    try fill(region) { UInt64($0) }
    for round in 0..<10_000 {
      let clone = try region.clone()
      if round % 16 == 0 { try clone.store(7, toByteOffset: 4096 * (round % Self.pages)) }
      if round % 32 == 0 { try region.store(UInt64(round), toByteOffset: 4096 * (round % Self.pages)) }
      try clone.unmap()
    }
    #expect(pool.usage.mappers == 1)
    try region.unmap()
    #expect(pool.usage == FramePool.Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0))
  }

  @Test(
    "W5: a break takes pages along beyond those that have broken away",
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func across(mechanism: WriteTracking.Mechanism) throws {
    let pages = 512
    let space = try AddressSpace()
    defer { try? space.close() }
    let region = try space.map(.pool, pages: pages)
    try fill(region) { UInt64($0) + 1 }
    let clone = try region.clone(mechanism: mechanism)
    let before = space.statistics
    // No two of the first ones are neighbours: each later break would end at one of them.
    let order = (0..<pages).map { $0 * 37 % pages }
    for page in order { try region.store(UInt64(1000 + page), toByteOffset: page * 4096) }
    for page in 0..<pages {
      #expect(try value(region, page) == UInt64(1000 + page), "page \(page)")
      #expect(try value(clone, page) == UInt64(page + 1), "page \(page)")
    }
    // A fault is counted when its writer has been woken.
    let count = {
      let now = space.statistics
      return now.handlerThreadFaults + now.inPlaceFaults - before.handlerThreadFaults - before.inPlaceFaults
    }
    #expect(spin { count() == 13 }, "\(count()) faults")
    #expect(space.statistics.copies - before.copies == UInt64(pages))
    #expect(space.statistics.openedPages - before.openedPages == UInt64(pages))
    // Who broke away before is where the others are now: one mapping.
    #expect(try ProcessMaps.mappings(in: region.addresses).count == 1)
    try clone.unmap()
    try region.unmap()
    #expect(try space.framePool().usage == FramePool.Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0))
  }
}
