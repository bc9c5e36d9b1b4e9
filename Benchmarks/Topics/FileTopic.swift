import PinKit

/// Files as the pages of regions: what reading and writing them back costs beside the plain calls.
enum FileTopic: BenchTopic {
  static let name = "file"

  static func check() throws {
    do { _ = try SubmissionRing(entries: 1) } catch { throw BenchFault(description: "It needs io_uring: \(error)") }
  }

  static let rows: [BenchRow] = [
    BenchRow("file/random-read", goal: .ratio(1.1), floor: "pread(2) + UFFDIO_COPY of 16 pages, handler thread", tries: 3) {
      try read($0, PageOrder.random, around: 16)
    },
    BenchRow(
      "file/random-read-exact", goal: .ratio(1.1), floor: "pread(2) + UFFDIO_COPY of a page, handler thread", tries: 3
    ) {
      try read($0, PageOrder.random, .exact, around: 1)
    },
    BenchRow("file/random-read-mmap", goal: .reported, floor: "mmap(2) of the file", tries: 3) {
      try readBesideMapping($0, PageOrder.random)
    },
    BenchRow(
      "file/sequential-read", goal: .ratio(1.1), floor: "pread(2) + UFFDIO_COPY of 64 pages, handler thread", tries: 3
    ) {
      try read($0, PageOrder.sequential, around: 64)
    },
    BenchRow(
      "file/sequential-read-exact", goal: .ratio(1.1), floor: "pread(2) + UFFDIO_COPY of a page, handler thread", tries: 3
    ) { try read($0, PageOrder.sequential, .exact, around: 1) },
    BenchRow("file/sequential-read-mmap", goal: .reported, floor: "mmap(2) of the file", tries: 3) {
      try readBesideMapping($0, PageOrder.sequential)
    },
    BenchRow("file/hops-cores", goal: .ratio(0.1), floor: "the same a page at a time, on the other core") {
      try read($0, PageOrder.random, around: 1, hopsCores: true)
    },
    BenchRow(
      "file/writeback", goal: .ratio(1.11), floor: "io_uring writing the same runs, fdatasync(2)", tries: 3
    ) { try flush($0, runs: dirtyRuns) },
    BenchRow("file/read-now", goal: .added(100), floor: "pread(2) of the page", tries: 10) { try readNow($0) },
    BenchRow(
      "file/writeback-store", goal: .ratio(1.11), floor: "io_uring writing the same runs, fdatasync(2)", tries: 3
    ) { try writeback($0, runs: dirtyRuns) },
    BenchRow(
      "file/writeback-store-pages", goal: .reported, floor: "io_uring writing the same pages, fdatasync(2)", tries: 3
    ) { try writeback($0) { (0..<$0 / 4).map { $0 * 4..<$0 * 4 + 1 } } },
  ]

  /// A quarter of the pages, in runs of one to eight.
  private static func dirtyRuns(_ pages: Int) -> [Range<Int>] {
    (0..<pages / 18).map { $0 * 18..<$0 * 18 + 1 + $0 * 5 % 8 }
  }

  private static func readNow(_ plan: BenchPlan) throws -> BenchContest {
    let file = try FloorFile(pages: plan.pages(16_384))
    let memory = FloorMemory(pages: 1)
    let order = PageOrder.random(file.pages)
    let options = FileStore.Options { $0.isReadOnly = true }
    let store = try FileStore(path: file.path, options: options)
    let buffer = unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: UInt(memory.base)), count: 4096)
    return BenchContest {
      var missed = 0
      let start = nanoseconds()
      for page in order {
        let page = Int(page)
        if unsafe !store.readNow(page..<page + 1, into: buffer) { missed += 1 }
      }
      let time = Double(nanoseconds() - start) / Double(order.count)
      guard missed == 0 else { throw BenchFault(description: "\(missed) pages were not in the page cache") }
      return time
    } floor: {
      try file.read(order, into: memory.base)
    }
  }

  private static func writeback(_ plan: BenchPlan, runs: (Int) -> [Range<Int>]) throws -> BenchContest {
    let file = try FloorFile(pages: plan.pages(32_768))
    let memory = FloorMemory(pages: file.pages)
    let runs = runs(file.pages)
    let count = Double(runs.reduce(0) { $0 + $1.count })
    let store = try FileStore(path: file.path)
    let transfers = runs.map { run in
      PageTransfer(
        pages: run,
        memory: AddressRange(start: UInt(memory.base) + UInt(run.lowerBound * 4096), count: run.count * 4096))
    }
    return BenchContest {
      let start = nanoseconds()
      for case let error? in store.write(transfers) { throw error }
      try store.flush()
      return Double(nanoseconds() - start) / count
    } floor: {
      try file.writeBack(runs, from: memory.base, depth: 64) / count
    }
  }
}
