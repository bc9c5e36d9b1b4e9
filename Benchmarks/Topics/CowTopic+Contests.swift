import PinKit

extension CowTopic {
  /// The time of the first write to each page once the clone that shared it is gone: the frame is reused.
  static func reuse(
    _ plan: BenchPlan, _ mechanism: WriteTracking.Mechanism, _ floor: FloorWatch.Mechanism
  ) throws -> BenchContest {
    let space = try AddressSpace()
    let region = try mapPopulated(space, pages: plan.pages(16_384))
    let memory = FloorMemory(pages: region.pageCount, isShared: true)
    let order = PageOrder.random(memory.pages)
    return BenchContest {
      try region.clone(mechanism: mechanism).unmap()
      let before = space.statistics.openedPages
      let time = region.write(order)
      try expect(region.pageCount, Int(space.statistics.openedPages - before), "pages opened")
      try expect(region.pageCount, try framesTaken(space), "frames taken")
      return time
    } floor: {
      FloorWatch(memory, floor).write(order)
    }
  }

  /// The time of the first write to each of `written(pages)` pages of a region while a clone shares them all: the frame is copied.
  static func breakAway(
    _ plan: BenchPlan, _ mechanism: WriteTracking.Mechanism, written: (Int) -> Int
  ) throws -> BenchContest {
    let space = try AddressSpace()
    let pages = plan.pages(65_536)
    let all = PageOrder.sequential(pages)
    let order = Array(PageOrder.random(pages).prefix(written(pages)))
    let floor = try FloorFork(pages: pages)
    return BenchContest {
      // Nobody has had the frames that it takes: the kernel's copies are new pages, too. Filled as programs fill memory: bulk calls
      // count as a use of their own to the kernel's page replacement, which every later use then has to move the page for.
      let region = try space.map(.pool, pages: pages)
      _ = region.write(all)
      let clone = try region.clone(mechanism: mechanism)
      let time = region.write(order)
      let copied = try framesTaken(space) - pages
      if order.count == pages {
        try expect(pages, copied, "frames copied")
      } else {
        guard copied >= order.count else { throw BenchFault(description: "only \(copied) frames copied") }
      }
      try clone.unmap()
      try region.unmap()
      return time
    } floor: {
      try floor.copy(order)
    }
  }

  /// The time of the first clone of a region, all of whose pages are there.
  static func create(_ plan: BenchPlan, huge: Bool) throws -> BenchContest {
    let space = try AddressSpace()
    let pages = plan.pages(524_288)
    guard FloorMemory.freePages > 3 * pages else {
      throw BenchSkip(description: "It needs \(3 * pages >> 8) MiB of free memory.")
    }
    let floor = try FloorFork(pages: pages, huge: huge)
    return BenchContest {
      huge ? try withHugeSharedMemory { try timeOfClone(space, pages, huge) } : try timeOfClone(space, pages, huge)
    } floor: {
      try floor.pause() / 1000
    }
  }

  private static func timeOfClone(_ space: AddressSpace, _ pages: Int, _ huge: Bool) throws -> Double {
    let region = try mapPopulated(space, pages: pages, huge: huge)
    if huge {
      let found = hugePages(at: UInt64(region.addresses.start), pages: pages)
      guard found == pages else {
        throw BenchSkip(description: "The kernel mapped \(found) of \(pages) pages by huge entries.")
      }
    }
    for page in [0, pages - 1] { try region.store(UInt64(page) + 1, toByteOffset: page * region.pageSize) }
    let start = nanoseconds()
    let clone = try region.clone()
    let time = nanoseconds() - start
    for page in [0, pages - 1] {
      try expect(page + 1, Int(try clone.load(fromByteOffset: page * clone.pageSize) as UInt64), "in the clone")
    }
    try clone.unmap()
    try region.unmap()
    return Double(time) / 1000
  }

  /// What PinKit knows of a frame, in bytes: every page of a region is shared, then copied, so that each has two.
  static func metadataOfFrame(_ plan: BenchPlan) throws -> BenchContest {
    let space = try AddressSpace()
    let pages = 65_536
    let order = PageOrder.sequential(pages)
    return BenchContest {
      let region = try mapPopulated(space, pages: pages)
      let before = residentKiB() - pageTableKiB()
      let clone = try region.clone()
      _ = region.write(order)
      let growth = residentKiB() - pageTableKiB() - before
      let frames = try framesTaken(space)
      try expect(2 * pages, frames, "frames taken")
      try clone.unmap()
      try region.unmap()
      return Double(growth) * 1024 / Double(frames)
    } floor: {
      16
    }
  }

  // MARK: What they share

  private static func mapPopulated(_ space: AddressSpace, pages: Int, huge: Bool = false) throws -> Region {
    let region = try space.map(.pool(hugePages: huge ? .prefer : .never), pages: pages)
    populate(at: UInt64(region.addresses.start), pages: pages)
    return region
  }

  /// Frames that have memory, in the whole pool.
  private static func framesTaken(_ space: AddressSpace) throws -> Int {
    try space.framePool().usage.residentBytes / 4096
  }

  private static func expect(_ expected: Int, _ found: Int, _ what: String) throws {
    guard found == expected else {
      throw BenchFault(description: "\(found) \(what) where \(expected) were expected: the figure means nothing")
    }
  }
}
