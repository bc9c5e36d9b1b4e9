import PinKit

extension ScaleTopic {
  /// The pages among which a thread's calls go round.
  static let pagesOfThread = 512

  private static func count(_ plan: BenchPlan) -> Int { plan.quick ? 5_000 : 50_000 }

  /// Memory in which every word that calls look at is 7.
  private static func mapSevens(_ backing: Backing, _ threads: Int) throws -> Region {
    let region = try AddressSpace().map(backing, pages: threads * pagesOfThread)
    for page in 0..<region.pageCount {
      try region.store(UInt64(7), toByteOffset: page * 4096 + FloorWalk.offset(in: page))
    }
    return region
  }

  private static func plainMemory(_ threads: Int) -> (memory: FloorMemory, base: @Sendable (Int) -> UInt64) {
    let memory = FloorMemory(pages: threads * pagesOfThread)
    return (memory, { [base = memory.base] in base + UInt64($0 * pagesOfThread * 4096) })
  }

  private static func expectSevens(_ sum: UInt64, _ count: Int) throws {
    guard sum == 7 * UInt64(count) else { throw BenchFault(description: "the memory shows something else") }
  }

  // MARK: The region's bytes

  @Sendable static func load(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let region = try mapSevens(.anonymous(hugePages: .never), threads)
    return ScaleCall(calls: count(plan)) { calls, thread in
      let start = thread * pagesOfThread * 4096
      var sum: UInt64 = 0
      for index in 0..<calls {
        sum &+= try region.load(fromByteOffset: start + FloorWalk.offset(index, pages: pagesOfThread), as: UInt64.self)
      }
      try expectSevens(sum, calls)
    }
  }

  @Sendable static func plainLoad(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let (memory, base) = plainMemory(threads)
    return ScaleCall(calls: count(plan)) { calls, thread in
      _ = memory
      FloorWalk.load(base(thread), pages: pagesOfThread, count: calls)
    }
  }

  @Sendable static func store(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let region = try mapSevens(.anonymous(hugePages: .never), threads)
    return ScaleCall(calls: count(plan)) { calls, thread in
      let start = thread * pagesOfThread * 4096
      for index in 0..<calls {
        try region.store(UInt64(index), toByteOffset: start + FloorWalk.offset(index, pages: pagesOfThread))
      }
    }
  }

  @Sendable static func plainStore(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let (memory, base) = plainMemory(threads)
    return ScaleCall(calls: count(plan)) { calls, thread in
      _ = memory
      FloorWalk.store(base(thread), pages: pagesOfThread, count: calls)
    }
  }

  // MARK: Pins

  /// Pin and unpin of a page.
  @Sendable static func pin(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let region = try mapSevens(.pool, threads)
    return ScaleCall(calls: count(plan)) { calls, thread in
      let first = thread * pagesOfThread
      for index in 0..<calls {
        let page = first + index & (pagesOfThread - 1)
        try region.pin(page..<page + 1, .write).unpin()
      }
    }
  }

  /// A word for each page, the words of a thread's pages side by side.
  @Sendable static func plainCount(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let memory = FloorMemory(pages: threads)
    return ScaleCall(calls: count(plan)) { calls, thread in
      FloorWalk.countUpDown(memory.base + UInt64(thread * 4096), words: pagesOfThread, count: calls)
    }
  }

  // MARK: Snapshots

  /// Every other page was written since, so that the snapshot has bytes of its own for it.
  @Sendable static func snapshotRead(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let region = try mapSevens(.anonymous(hugePages: .never), threads)
    let snapshot = try region.snapshot()
    for page in stride(from: 0, to: region.pageCount, by: 2) {
      try region.store(UInt64(8), toByteOffset: page * 4096 + FloorWalk.offset(in: page))
    }
    return ScaleCall(calls: count(plan) / 5) { calls, thread in
      let first = thread * pagesOfThread
      for index in 0..<calls {
        let bytes = try snapshot.read(first + index & (pagesOfThread - 1))
        guard bytes[FloorWalk.offset(in: index)] == 7 else {
          throw BenchFault(description: "the snapshot shows something else")
        }
      }
    }
  }

  @Sendable static func plainCopy(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let (memory, base) = plainMemory(threads)
    return ScaleCall(calls: count(plan) / 5) { calls, thread in
      _ = memory
      FloorWalk.copy(base(thread), pages: pagesOfThread, count: calls)
    }
  }

  // MARK: Mirrors

  /// One mirror of the whole region.
  @Sendable static func mirror(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let region = try mapSevens(.pool, threads)
    let mirror = try SecondaryMMU(region)
    return ScaleCall(calls: count(plan)) { calls, thread in
      let first = thread * pagesOfThread
      var sum: UInt64 = 0
      for index in 0..<calls {
        sum &+= try unsafe mirror.withBytes(of: first + index & (pagesOfThread - 1), for: .reading) {
          unsafe $0.load(fromByteOffset: FloorWalk.offset(in: index), as: UInt64.self)
        }
      }
      try expectSevens(sum, calls)
    }
  }

  @Sendable static func plainTranslation(_ plan: BenchPlan, _ threads: Int) throws -> ScaleCall {
    let (memory, base) = plainMemory(threads)
    let tables = (0..<threads).map { thread in
      (0..<pagesOfThread).map { base(thread) + UInt64(FloorWalk.offset($0, pages: pagesOfThread)) }
    }
    return ScaleCall(calls: count(plan)) { calls, thread in
      _ = memory
      _ = loadThroughTable(tables[thread], count: calls)
    }
  }
}
