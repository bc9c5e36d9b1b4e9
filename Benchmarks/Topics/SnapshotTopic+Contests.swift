import Foundation
import PinKit

extension SnapshotTopic {
  enum Figure {
    /// For how long nobody can write.
    case pause
    /// For how long the caller waits.
    case call
  }

  /// A region's first snapshot, which protects every page.
  static func first(_ plan: BenchPlan, _ figure: Figure, huge: Bool, pages: Int = 524_288) throws -> BenchContest {
    let space = try AddressSpace()
    let pages = plan.pages(pages)
    let region = try mapPopulated(space, pages: pages, huge: huge)
    let floor = try FloorFork(pages: pages, huge: huge)
    return BenchContest {
      if huge {
        let found = hugePages(at: UInt64(region.addresses.start), pages: pages)
        guard found == pages else {
          throw BenchSkip(description: "The kernel mapped \(found) of \(pages) pages by huge entries.")
        }
      }
      // The floor has just walked its page tables, to undo the sharing of its last round.
      populate(at: UInt64(region.addresses.start), pages: pages)
      let time = try timeOfSnapshot(region, figure)
      try region.endSnapshots()
      return time
    } floor: {
      try floor.pause() / 1000
    }
  }

  /// A second snapshot, when one page in a hundred was written since the first.
  static func second(_ plan: BenchPlan, _ figure: Figure) throws -> BenchContest {
    let space = try AddressSpace()
    let pages = plan.pages(524_288)
    let region = try mapPopulated(space, pages: pages)
    let written = Array(PageOrder.random(pages).prefix(pages / 100))
    let floor = try FloorFork(pages: pages)
    return BenchContest {
      let first = try region.snapshot()
      _ = region.write(written)
      first.close()
      let time = try timeOfSnapshot(region, figure)
      try region.endSnapshots()
      return time
    } floor: {
      try floor.pause() / 1000
    }
  }

  /// For how long a thread that writes all the time is stopped at most by a snapshot.
  static func stall(_ plan: BenchPlan) throws -> BenchContest {
    let space = try AddressSpace()
    let pages = plan.pages(524_288)
    let region = try mapPopulated(space, pages: pages)
    let floor = try FloorFork(pages: pages)
    return BenchContest {
      populate(at: UInt64(region.addresses.start), pages: pages)
      let writer = try BusyWriter(at: UInt64(region.addresses.start), pages: pages)
      var snapshot: Snapshot?
      let time = try writer.longestStall { snapshot = try region.snapshot() }
      withExtendedLifetime(writer) {}
      snapshot?.close()
      try region.endSnapshots()
      return time / 1000
    } floor: {
      try floor.stall() / 1000
    }
  }

  /// What the first write to each page costs while a snapshot is held, beyond what it costs otherwise.
  static func writer(_ plan: BenchPlan, _ mechanism: WriteTracking.Mechanism) throws -> BenchContest {
    let space = try AddressSpace()
    let pages = plan.pages(65_536)
    let region = try mapPopulated(space, pages: pages)
    let order = PageOrder.random(pages)
    let floor = try FloorFork(pages: pages)
    return BenchContest {
      let plain = region.write(order)
      let snapshot = try region.snapshot(SnapshotOptions(mechanism: mechanism))
      let time = region.write(order)
      // One page holds zeros only, which need not be kept.
      guard snapshot.capturedBytes >= (pages - 1) * region.pageSize else {
        throw BenchFault(description: "only \(snapshot.capturedBytes) bytes were kept: the figure means nothing")
      }
      snapshot.close()
      try region.endSnapshots()
      return time - plain
    } floor: {
      try floor.copy(order)
    }
  }

  /// The time to write a snapshot to a file that survives a power failure.
  static func stream(_ plan: BenchPlan) throws -> BenchContest {
    let space = try AddressSpace()
    let region = try mapPopulated(space, pages: plan.pages(131_072))
    let directory = try TemporaryDirectory()
    let (image, raw) = (directory.path + "/image", directory.path + "/raw")
    return BenchContest {
      let snapshot = try region.snapshot()
      let start = nanoseconds()
      try snapshot.write(to: image)
      let time = nanoseconds() - start
      snapshot.close()
      try region.endSnapshots()
      try directory.empty()
      return Double(time) / Double(region.pageCount)
    } floor: {
      let time = try writeByRing(at: UInt64(region.addresses.start), pages: region.pageCount, to: raw)
      try directory.empty()
      return time
    }
  }

  // MARK: What they share

  private static func mapPopulated(_ space: AddressSpace, pages: Int, huge: Bool = false) throws -> Region {
    guard FloorMemory.freePages > 3 * pages else {
      throw BenchSkip(description: "It needs \(3 * pages >> 8) MiB of free memory.")
    }
    let region = try space.map(.anonymous(hugePages: huge ? .prefer : .never), pages: pages)
    populate(at: UInt64(region.addresses.start), pages: pages)
    _ = region.write(PageOrder.sequential(pages))
    return region
  }

  private static func timeOfSnapshot(_ region: Region, _ figure: Figure) throws -> Double {
    let start = nanoseconds()
    let snapshot = try region.snapshot()
    let time = nanoseconds() - start
    defer { snapshot.close() }
    return Double(figure == .call ? time : snapshot.pause) / 1000
  }
}

/// A directory that goes with its last reference.
private final class TemporaryDirectory {
  let path: String

  init() throws {
    let url = FileManager.default.temporaryDirectory.appendingPathComponent("pinctl-bench-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: false)
    path = url.path
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func empty() throws {
    for name in try FileManager.default.contentsOfDirectory(atPath: path) {
      try FileManager.default.removeItem(atPath: path + "/" + name)
    }
  }
}
