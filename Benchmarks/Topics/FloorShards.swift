internal import CFloor

/// The floor's own write tracking of memory that threads share, in one part or in several. One at a time in a process.
@safe struct FloorShards: ~Copyable {
  private let shards: OpaquePointer
  private let memory: FloorMemory

  /// - Parameter count: How many parts, each with a userfaultfd of its own and, for `.handlerThread`, a reader.
  init(_ memory: FloorMemory, _ mechanism: FloorWatch.Mechanism, count: Int) {
    unsafe shards = cfloor_shards_start(memory.base, memory.pages, count, mechanism.number)
    self.memory = memory
  }

  deinit { unsafe cfloor_shards_stop(shards) }

  /// As ``FloorMemory/write(_:threads:)``, watched until the last write.
  func write(_ order: [UInt32], threads: Int) throws -> Double { try memory.write(order, threads: threads) }
}

extension FloorMemory {
  /// Each of so many threads writes each page of `order` once, of its own part of the memory; ns a write of the slowest.
  func write(_ order: [UInt32], threads: Int) throws -> Double {
    let (base, part) = (base, UInt64(pages / threads * 4096))
    return try FloorTeam.time(threads, calls: order.count) { _ = writePages(at: base + UInt64($0) * part, order) }
  }
}

/// What threads do again and again on `pages` pages of their own, a power of two.
enum FloorWalk {
  /// Where the call number `index` touches memory, in bytes.
  @inline(__always) static func offset(_ index: Int, pages: Int) -> Int { (index & (pages - 1)) * 4096 + offset(in: index) }

  /// Where it touches the page: each of 64 pages that follow each other in another set of the cache.
  @inline(__always) static func offset(in page: Int) -> Int { (page & 63) * 64 }

  static func load(_ base: UInt64, pages: Int, count: Int) { cfloor_walk_load(base, pages, count) }
  static func store(_ base: UInt64, pages: Int, count: Int) { cfloor_walk_store(base, pages, count) }
  /// Of adjacent words.
  static func countUpDown(_ base: UInt64, words: Int, count: Int) { cfloor_walk_count(base, words, count) }
  static func copy(_ base: UInt64, pages: Int, count: Int) { cfloor_walk_copy(base, pages, count) }
}
