import Foundation
import PinKit

/// What as many threads as there are cores pay, each on its own pages, beside one thread and beside as many threads of plain C.
///
/// A figure is what the *slowest* thread needed for each of its calls, from the moment at which the first began: see
/// ``FloorTeam/time(_:calls:prepare:_:)``. Unlike a mean it does not get better when threads run one after the other. Where nothing is
/// shared it stays what it is with one thread, however many there are.
///
/// A thread's pages are one run of a region that all threads share, as where a program divides memory among its threads: 512 pages, or a
/// multiple. What there is for each page (a word, a bit) then fills whole cache lines of the thread's own, and so do its page tables; nothing
/// else is done to keep threads apart, and none is bound to a core.
///
/// `scale/NAME` is the headline: for calls, beside one thread; for faults, beside plain C. `scale/NAME-N` has N threads on both sides, the
/// other one plain C; where the headline compares the same it is left out.
enum ScaleTopic: BenchTopic {
  static let name = "scale"

  static func check() throws { try TrackTopic.check() }

  /// 1, 2, 4 … and as many as there are cores.
  static func threadCounts(cores: Int) -> [Int] {
    var counts: [Int] = []
    var count = 1
    while count < cores {
      counts.append(count)
      count *= 2
    }
    return counts + [max(1, cores)]
  }

  /// Those that the process may use.
  static let cores = ProcessInfo.processInfo.activeProcessorCount

  static let rows: [BenchRow] = rows(cores: cores)

  /// What many threads may pay that share a cache beyond two of them.
  static func rows(cores: Int) -> [BenchRow] {
    let busy = "\(of(cores - 1)) busy"
    let (few, many) = (cores <= 2 ? 1.15 : 1.5, cores <= 2 ? 1.3 : 2)
    return calls("load", cores, few, one: .value(20), floor: "a load", load, plainLoad)
      + calls("store", cores, few, one: .value(20), floor: "a store", store, plainStore)
      + calls("pin", cores, few, one: .reported, floor: "two atomic read-modify-writes", pin, plainCount)
      + calls("snapshot-read", cores, many, one: .value(500), floor: "memcpy(3) of the page", snapshotRead, plainCopy)
      + calls("mirror", cores, few, one: .value(10), floor: "a load through a plain table", mirror, plainTranslation)

      + faults("first-write-thread", cores, 1.2, floor: "one userfaultfd, one reader thread") { plan, threads in
        try firstWrite(plan, threads, .handlerThread, .handlerThread)
      }
      + faults("first-write-in-place", cores, 1.15, tries: 3, floor: "one userfaultfd, SIGBUS") { plan, threads in
        try firstWrite(plan, threads, .inPlace, .inPlace)
      }
      + faults("first-write-async", cores, 1.2, tries: 3, floor: "WP_ASYNC, one mapping (VMA)") { plan, threads in
        try firstWrite(plan, threads, .asynchronous, .asynchronousByScan)
      }
      + [
        // The same side of PinKit's, beside what a part for each thread can reach.
        fault("first-write-thread-sharded", cores, .ratio(1.3), floor: "a userfaultfd and a reader for each of") {
          try firstWrite($0, $1, .handlerThread, .handlerThread, shards: $1)
        },
        fault("first-write-async-sharded", cores, .ratio(1.2), tries: 3, floor: "WP_ASYNC, a mapping for each of") {
          try firstWrite($0, $1, .asynchronous, .asynchronousByScan, shards: $1)
        },
        fault("first-write-thread-regions", cores, .ratio(1.2), floor: "a userfaultfd and a reader for each of") {
          try firstWriteOfRegions($0, $1)
        },
        fault("missing-page", cores, .ratio(1.3), floor: "a memfd, a userfaultfd and a reader for each of") {
          try missingPage($0, $1)
        },
        // The first write to each page, all of them owed.
        BenchRow("scale/snapshot-writer", goal: .value(5_000), floor: "one thread") { try snapshotWriter($0, cores) },

        // Beside threads that do nothing for the tracker, and must all be told when protection comes back: for each page table of 512
        // pages that has a dirty one, the kernel interrupts every core on which the process runs.
        BenchRow("scale/collect-busy", goal: .ratio(1.2), floor: "PAGEMAP_SCAN, at random, \(busy)", tries: 3) {
          try collectBusy($0, cores - 1) { Array(PageOrder.random($0).prefix($0 / 100)) }
        },
        BenchRow("scale/collect-busy-runs", goal: .value(7.5), floor: "PAGEMAP_SCAN, runs of 32, \(busy)", tries: 3) {
          try collectBusy($0, cores - 1) { Array(PageOrder.randomRuns($0, of: 32).prefix($0 / 100 & ~31)) }
        },
      ]
  }

  private typealias Call = @Sendable (BenchPlan, Int) throws -> ScaleCall

  private static func calls(
    _ name: String, _ cores: Int, _ limit: Double, one: BenchGoal, floor: String, _ call: @escaping Call,
    _ plain: @escaping Call
  ) -> [BenchRow] {
    let headline = BenchRow("scale/\(name)", unit: "ns/call", goal: .ratio(limit), floor: "one thread", tries: 10) { plan in
      let call = try call(plan, cores)
      return BenchContest {
        try call.time(cores)
      } floor: {
        try call.time(1)
      }
    }
    return [headline]
      + threadCounts(cores: cores).map { threads in
        BenchRow(
          "scale/\(name)-\(threads)", unit: "ns/call", goal: threads == 1 ? one : .reported,
          floor: "\(floor), \(of(threads))", tries: 10
        ) { plan in
          let (call, plain) = (try call(plan, threads), try plain(plan, threads))
          return BenchContest {
            try call.time(threads)
          } floor: {
            try plain.time(threads)
          }
        }
      }
  }

  private static func of(_ threads: Int) -> String { threads == 1 ? "1 thread" : "\(threads) threads" }

  private static func faults(
    _ name: String, _ cores: Int, _ limit: Double, tries: Int = 1, floor: String,
    _ contest: @escaping @Sendable (BenchPlan, Int) throws -> BenchContest
  ) -> [BenchRow] {
    let counts = threadCounts(cores: cores)
    return (counts.suffix(1) + counts.dropLast()).map { threads in
      BenchRow(
        threads == cores ? "scale/\(name)" : "scale/\(name)-\(threads)", unit: "ns/page",
        goal: threads == cores ? .ratio(limit) : .reported, floor: "\(floor), \(of(threads))", tries: tries
      ) { try contest($0, threads) }
    }
  }

  private static func fault(
    _ name: String, _ cores: Int, _ goal: BenchGoal, tries: Int = 1, floor: String,
    _ contest: @escaping @Sendable (BenchPlan, Int) throws -> BenchContest
  ) -> BenchRow {
    BenchRow("scale/\(name)", goal: goal, floor: "\(floor) \(of(cores))", tries: tries) { try contest($0, cores) }
  }
}

/// A call that threads make again and again, each on its own pages.
struct ScaleCall: Sendable {
  /// Of each thread.
  let calls: Int
  /// Makes so many calls as the thread of a number.
  let make: @Sendable (_ calls: Int, _ thread: Int) throws -> Void

  /// ns a call of so many threads. What only a thread's first call costs is not in it.
  func time(_ threads: Int) throws -> Double {
    try FloorTeam.time(threads, calls: calls, prepare: { try make(ScaleTopic.pagesOfThread, $0) }) { try make(calls, $0) }
  }
}
