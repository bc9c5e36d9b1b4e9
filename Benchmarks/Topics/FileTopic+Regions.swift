import PinKit

extension FileTopic {
  /// The first access to each page, all of them in the page cache, by one thread; the region and the floor fill alike.
  static func read(
    _ plan: BenchPlan, _ order: (Int) -> [UInt32], _ fillAround: FillAround = .adaptive(), around: Int,
    hopsCores: Bool = false
  ) throws -> BenchContest {
    let file = try FloorFile(pages: plan.pages(16_384))
    let order = order(file.pages)
    let floor = try file.fill(around: around, hopsCores: hopsCores)
    let side = try regionSide(file, order, fillAround)
    return BenchContest {
      try side()
    } floor: {
      floor.read(order)
    }
  }

  /// The same beside the kernel's own mapping of the file.
  static func readBesideMapping(_ plan: BenchPlan, _ order: (Int) -> [UInt32]) throws -> BenchContest {
    let file = try FloorFile(pages: plan.pages(16_384))
    let order = order(file.pages)
    let side = try regionSide(file, order, .adaptive())
    return BenchContest {
      try side()
    } floor: {
      try file.readMapped(order)
    }
  }

  private static func regionSide(
    _ file: FloorFile, _ order: [UInt32], _ fillAround: FillAround
  ) throws -> () throws -> Double {
    let mapped = try MappedFile(file, isReadOnly: true, fillAround)
    var isFirst = true
    return {
      if !isFirst { try mapped.drop() }
      isFirst = false
      return readPages(at: UInt64(mapped.region.addresses.start), order)
    }
  }

  /// Writing back what has changed in a region, and making it durable.
  static func flush(_ plan: BenchPlan, runs: (Int) -> [Range<Int>]) throws -> BenchContest {
    let file = try FloorFile(pages: plan.pages(32_768))
    // Shared as a region's frames are, and of the same kernel.
    let memory = FloorMemory(pages: file.pages, isShared: true)
    let runs = runs(file.pages)
    let dirty = runs.flatMap { $0.map(UInt32.init) }
    let mapped = try MappedFile(file)
    let region = mapped.region
    return BenchContest {
      _ = region.write(dirty)
      let start = nanoseconds()
      try region.flush()
      let time = Double(nanoseconds() - start) / Double(dirty.count)
      guard try region.filePageState(Int(dirty[0])).isDirty == false else {
        throw BenchFault(description: "a page stayed dirty: the figure means nothing")
      }
      _ = mapped
      return time
    } floor: {
      _ = memory.write(dirty)
      return try file.writeBack(runs, from: memory.base, depth: 64) / Double(dirty.count)
    }
  }
}

/// A file of the floor as a region, which goes before the file does.
final class MappedFile: Sendable {
  let region: Region
  private let file: FloorFile

  init(_ file: FloorFile, isReadOnly: Bool = false, _ fillAround: FillAround = .adaptive()) throws {
    let store = try FileStore(path: file.path, options: .init { $0.isReadOnly = isReadOnly })
    region = try AddressSpace().map(.file(store, fillAround: fillAround), pages: file.pages)
    self.file = file
  }

  deinit { try? region.unmap() }

  /// Drops all pages, each of which was read.
  func drop() throws {
    // Who waited for the last pages runs before they are on record.
    var dropped = 0
    for _ in 0..<1000 where dropped < region.pageCount { dropped += try region.reclaim(0..<region.pageCount) }
    guard dropped == region.pageCount else {
      throw BenchFault(description: "only \(dropped) of \(region.pageCount) pages were dropped: the figure means nothing")
    }
  }
}
