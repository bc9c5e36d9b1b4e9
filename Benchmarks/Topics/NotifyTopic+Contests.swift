import PinKit

extension NotifyTopic {
  /// A subscriber that does nothing but count.
  private final class Counter: MMUNotifier, @unchecked Sendable {  // read when nothing changes
    var starts = 0
    var ends = 0

    func invalidateRangeStart(_ range: InvalidationRange) -> InvalidationResponse {
      starts += 1
      return .done
    }
    func invalidateRangeEnd(_ range: InvalidationRange) { ends += 1 }
  }

  /// The time of an operation that tells subscribers, of whom one overlaps: giving a page a right that it has, which is next to
  /// nothing in the kernel.
  static func operation(_ plan: BenchPlan, subscriptions count: Int) throws -> BenchContest {
    let space = try AddressSpace()
    // Eight pages each: the page that changes is in one of them, nowhere in particular.
    let pages = max(64, count * 8)
    let page = count / 3 * 8 + 3
    let counter = Counter()
    func make() throws -> Region {
      let region = try space.map(.anonymous(hugePages: .never), pages: pages)
      // Whoever subscribes needs what a tracker needs: both regions have it.
      try region.trackWrites(.handlerThread).stop()
      return region
    }
    let (told, quiet) = (try make(), try make())
    var subscriptions = [try told.subscribe(counter)]
    subscriptions[0].remove()
    subscriptions = try (0..<count).map { try told.subscribe(counter, to: $0 * 8..<$0 * 8 + 8) }
    let repeats = plan.quick ? 200 : 2_000
    func time(_ region: Region) throws -> Double {
      let start = nanoseconds()
      for _ in 0..<repeats { try region.protect(page..<page + 1, to: .readWrite) }
      return Double(nanoseconds() - start) / Double(repeats)
    }
    return BenchContest {
      let before = counter.ends
      let figure = try time(told)
      _ = subscriptions
      guard counter.ends - before == (count == 0 ? 0 : repeats), counter.starts == counter.ends else {
        throw BenchFault(description: "\(counter.ends - before) ends for \(repeats) operations: the figure means nothing")
      }
      return figure
    } floor: {
      try time(quiet)
    }
  }

  // MARK: Windows

  private static func window(_ space: AddressSpace) throws -> DirectMapping {
    let region = try space.map(.pool, pages: 4)
    try region.store(UInt64(7), toByteOffset: 0)
    return try DirectMapping(region, pages: 0..<1, for: .reading)
  }

  /// ns a read, of so many.
  @inline(never) fileprivate static func read(_ mapping: DirectMapping, _ count: Int) throws -> Double {
    var sum: UInt64 = 0
    let start = nanoseconds()
    for _ in 0..<count { sum &+= try unsafe mapping.withBytes { unsafe $0.load(as: UInt64.self) } }
    let time = nanoseconds() - start
    guard sum == 7 * UInt64(count) else { throw BenchFault(description: "the window shows something else") }
    return Double(time) / Double(count)
  }

  static func directRead(_ plan: BenchPlan) throws -> BenchContest {
    let space = try AddressSpace()
    let mapping = try window(space)
    let address = try unsafe mapping.withBytes { UInt(bitPattern: $0.baseAddress) }
    let count = plan.quick ? 20_000 : 200_000
    return BenchContest {
      _ = space
      return try read(mapping, count)
    } floor: {
      loadWord(at: address, count: count)
    }
  }

  static func twoReaders(_ plan: BenchPlan) throws -> BenchContest {
    let space = try AddressSpace()
    let mapping = try window(space)
    let count = plan.quick ? 20_000 : 400_000
    return BenchContest {
      _ = space
      return try FloorTeam.time(2, calls: count) { _ in _ = try read(mapping, count) }
    } floor: {
      try read(mapping, count)
    }
  }

  // MARK: Mirrors

  static func translateHit(_ plan: BenchPlan) throws -> BenchContest {
    let space = try AddressSpace()
    let pages = 256
    let region = try space.map(.pool, pages: pages)
    for page in 0..<pages { try region.store(UInt64(7), toByteOffset: page * region.pageSize) }
    let mirror = try SecondaryMMU(region)
    let table = try (0..<pages).map { page in
      try unsafe mirror.withBytes(of: page, for: .reading) { UInt64(UInt(bitPattern: $0.baseAddress)) }
    }
    let count = plan.quick ? 20_000 : 200_000
    return BenchContest {
      var sum: UInt64 = 0
      let start = nanoseconds()
      for index in 0..<count {
        sum &+= try unsafe mirror.withBytes(of: index & 255, for: .reading) { unsafe $0.load(as: UInt64.self) }
      }
      let time = nanoseconds() - start
      guard sum == 7 * UInt64(count) else { throw BenchFault(description: "the mirror shows something else") }
      return Double(time) / Double(count)
    } floor: {
      loadThroughTable(table, count: count)
    }
  }

  /// The time of the first translation for writing of each page that a tracker has armed, beside that of a first write.
  static func translateMiss(
    _ plan: BenchPlan, _ mechanism: WriteTracking.Mechanism, _ floor: FloorWatch.Mechanism
  ) throws -> BenchContest {
    let space = try AddressSpace()
    let memory = FloorMemory(pages: plan.pages(16_384))
    let order = PageOrder.random(memory.pages)
    return BenchContest {
      let region = try space.adopt(AddressRange(start: UInt(memory.base), count: memory.pages * 4096))
      let tracker = try region.trackWrites(mechanism, options: .init(faultAround: .exact))
      let mirror = try SecondaryMMU(region)
      let start = nanoseconds()
      for page in order { try mirror.translate(Int(page), for: .writing) }
      let time = Double(nanoseconds() - start) / Double(order.count)
      let set = try tracker.collect()
      guard set.count == memory.pages else {
        throw BenchFault(description: "\(set.count) of \(memory.pages) pages are dirty: the figure means nothing")
      }
      mirror.close()
      try tracker.stop()
      try region.unmap()
      return time
    } floor: {
      FloorWatch(memory, floor).write(order)
    }
  }
}
