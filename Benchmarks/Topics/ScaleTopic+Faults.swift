import PinKit

extension ScaleTopic {
  /// What one thread writes or reads: a whole number of page tables.
  private static func pagesOfWriter(_ plan: BenchPlan) -> Int { plan.pages(8_192) }

  /// The first write to each page of one region after arming.
  ///
  /// - Parameter shards: Of the floor: how many parts it has.
  static func firstWrite(
    _ plan: BenchPlan, _ threads: Int, _ mechanism: WriteTracking.Mechanism, _ floor: FloorWatch.Mechanism, shards: Int = 1
  ) throws -> BenchContest {
    let order = PageOrder.random(pagesOfWriter(plan))
    let memory = FloorMemory(pages: threads * order.count)
    let space = try AddressSpace()
    return BenchContest {
      let region = try space.adopt(AddressRange(start: UInt(memory.base), count: memory.pages * 4096))
      let tracker = try region.trackWrites(mechanism, options: .init(faultAround: .exact))
      let time = try memory.write(order, threads: threads)
      try expectAll(tracker.collect().count, memory.pages)
      try tracker.stop()
      try region.unmap()
      return time
    } floor: {
      try FloorShards(memory, floor, count: shards).write(order, threads: threads)
    }
  }

  /// The same where each thread has a region of its own.
  static func firstWriteOfRegions(_ plan: BenchPlan, _ threads: Int) throws -> BenchContest {
    let order = PageOrder.random(pagesOfWriter(plan))
    let memory = FloorMemory(pages: threads * order.count)
    let space = try AddressSpace()
    return BenchContest {
      let regions = try (0..<threads).map {
        try space.adopt(AddressRange(start: UInt(memory.base) + UInt($0 * order.count * 4096), count: order.count * 4096))
      }
      let options = WriteTracking.Options(faultAround: .exact)
      let sessions = try regions.map { TrackedRegion(try $0.trackWrites(.handlerThread, options: options)) }
      let time = try memory.write(order, threads: threads)
      try expectAll(sessions.reduce(0) { try $0 + $1.tracker.collect().count }, memory.pages)
      for session in sessions { try session.tracker.stop() }
      for region in regions { try region.unmap() }
      return time
    } floor: {
      try FloorShards(memory, .handlerThread, count: threads).write(order, threads: threads)
    }
  }

  /// A tracker cannot be copied, and so not be in an array.
  private final class TrackedRegion {
    let tracker: WriteTracker
    init(_ tracker: consuming WriteTracker) { self.tracker = tracker }
  }

  /// The first access to each page of one region over a file that is in the page cache, a page a fault.
  static func missingPage(_ plan: BenchPlan, _ threads: Int) throws -> BenchContest {
    let order = PageOrder.random(pagesOfWriter(plan) / 2)
    let mapped = try MappedFile(FloorFile(pages: threads * order.count), isReadOnly: true, .exact)
    let part = try FloorFile(pages: order.count)
    let fills = try (0..<threads).map { _ in try part.fill(around: 1) }
    let (base, length) = (UInt64(mapped.region.addresses.start), UInt64(order.count * 4096))
    var isFirst = true
    return BenchContest {
      if !isFirst { try mapped.drop() }
      isFirst = false
      return try FloorTeam.time(threads, calls: order.count) { _ = readPages(at: base + UInt64($0) * length, order) }
    } floor: {
      for fill in fills { fill.forget() }
      return try FloorTeam.time(threads, calls: order.count) { _ = readPages(at: fills[$0].base, order) }
    }
  }

  /// The first write to each page while a snapshot is open.
  static func snapshotWriter(_ plan: BenchPlan, _ threads: Int) throws -> BenchContest {
    let order = PageOrder.random(pagesOfWriter(plan))
    let pages = threads * order.count
    let region = try AddressSpace().map(.anonymous(hugePages: .never), pages: pages)
    _ = region.write(PageOrder.sequential(pages))
    @Sendable func write(_ threads: Int) throws -> Double {
      let snapshot = try region.snapshot()
      let (base, length) = (UInt64(region.addresses.start), UInt64(order.count * 4096))
      let time = try FloorTeam.time(threads, calls: order.count) { _ = writePages(at: base + UInt64($0) * length, order) }
      // A page holds zeros only, which need not be kept: the first that each thread writes.
      guard snapshot.capturedBytes >= (order.count - 1) * threads * region.pageSize else {
        throw BenchFault(description: "only \(snapshot.capturedBytes) bytes were kept: the figure means nothing")
      }
      snapshot.close()
      try region.endSnapshots()
      return time
    }
    return BenchContest {
      try write(threads)
    } floor: {
      try write(1)
    }
  }

  /// Collecting what `order` says was written while other threads of the process are busy with memory of their own.
  static func collectBusy(_ plan: BenchPlan, _ threads: Int, order: (Int) -> [UInt32]) throws -> BenchContest {
    let busy = FloorBusy(threads)
    let contest = try TrackTopic.collect(plan, .asynchronous, .asynchronousByScan, pages: 524_288, order: order)
    return BenchContest {
      _ = busy
      return try contest.pinkit()
    } floor: {
      _ = busy
      return try contest.floor()
    }
  }

  private static func expectAll(_ found: Int, _ pages: Int) throws {
    guard found == pages else {
      throw BenchFault(description: "\(found) dirty pages where \(pages) were written: the figure means nothing")
    }
  }
}
