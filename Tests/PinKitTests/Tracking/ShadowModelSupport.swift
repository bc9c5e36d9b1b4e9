import Glibc
import Synchronization
import Testing

@testable import PinKit

/// One 64-bit number for each page, shared by all threads.
@safe final class PageNumbers: @unchecked Sendable {  // touched through atomics only
  private let numbers: UnsafeMutablePointer<Atomic<UInt64>>
  private let count: Int
  init(count: Int) {
    self.count = count
    unsafe numbers = .allocate(capacity: count)
    for index in 0..<count { unsafe (numbers + index).initialize(to: Atomic(0)) }
  }
  deinit { unsafe numbers.deallocate() }
  subscript(page: Int) -> UInt64 { unsafe numbers[page].load(ordering: .sequentiallyConsistent) }
  func increment(_ page: Int) { unsafe _ = numbers[page].add(1, ordering: .sequentiallyConsistent) }
  var snapshot: [UInt64] { (0..<count).map { self[$0] } }
}

/// What the writers of a region have done: each page has one writer, which says so before and after it changes the page.
final class ChangeLog: Sendable {
  let started: PageNumbers
  let finished: PageNumbers
  let pageCount: Int
  init(pageCount: Int) {
    self.pageCount = pageCount
    started = PageNumbers(count: pageCount)
    finished = PageNumbers(count: pageCount)
  }

  func change<Result>(_ page: Int, _ body: () throws -> Result) rethrows -> Result {
    started.increment(page)
    defer { finished.increment(page) }
    return try body()
  }
}

/// Reads managed memory the way a debugger does: pages that the program may not read, too.
enum Peek {
  private static let memory = unsafe open("/proc/self/mem", O_RDONLY | O_CLOEXEC)

  static func value(at address: UInt) -> UInt64? {
    var value: UInt64 = 0
    return unsafe pread(memory, &value, 8, off_t(address)) == 8 ? value : nil
  }
}

/// A tracker and what a program that copies every page a collection names would hold: a shadow of the region.
///
/// It checks three things. A change that was complete before a collection began is in that set, unless an earlier set that came
/// after the change began has had it. A page is in a set only if a change of it was under way or complete since the last
/// collection; where the kernel may move it, if there ever was one (``Combination/mayRepeat``). And once the writers rest, the copy
/// equals the region: no write was lost.
struct ShadowView: ~Copyable {
  private let tracker: WriteTracker
  private let log: ChangeLog
  private let findings: Findings
  private let slots: [Int]
  private let mayRepeat: Bool
  private var copy: [[UInt64?]]
  /// By page: how many changes had begun when the latest set with the page was complete.
  private var covered: [UInt64]
  /// By page: how many changes were complete before the previous collection began.
  private var finishedBefore: [UInt64]
  private(set) var collections = 0

  init(
    _ region: Region, _ mechanism: WriteTracking.Mechanism, _ options: WriteTracking.Options, log: ChangeLog, slots: [Int],
    findings: Findings, mayRepeat: Bool = false
  ) throws {
    self.mayRepeat = mayRepeat
    self.log = log
    self.findings = findings
    self.slots = slots
    finishedBefore = log.finished.snapshot
    tracker = try region.trackWrites(mechanism, options: options)
    covered = log.started.snapshot
    copy = (0..<log.pageCount).map { Self.read($0, region, slots) }
  }

  private static func read(_ page: Int, _ region: Region, _ slots: [Int]) -> [UInt64?] {
    slots.map { Peek.value(at: region.addresses.start + UInt(page * region.pageSize + $0)) }
  }

  mutating func collect() throws { try collect(afterPause: false) }

  private mutating func collect(afterPause: Bool) throws {
    let finished = log.finished.snapshot
    let set = try tracker.collect()
    let started = log.started.snapshot
    collections += 1
    let known = set.exactPages
    Tally.add(.checks, log.pageCount)
    for page in 0..<log.pageCount {
      if set.contains(page) {
        let isExpected = started[page] > (mayRepeat ? 0 : finishedBefore[page])
        if known.contains(page), !isExpected, !afterPause {
          findings.note("page \(page) is in collection \(collections), but nobody changed it")
        }
        covered[page] = started[page]
      } else if finished[page] > covered[page] {
        findings.note("page \(page) is not in collection \(collections); change \(finished[page]) was complete before")
        covered[page] = finished[page]
      }
      if afterPause || set.contains(page) { copy[page] = Self.read(page, tracker.region, slots) }
    }
    finishedBefore = finished
  }

  /// With every writer at rest.
  mutating func compare(_ moment: String) throws {
    try collect()
    for page in 0..<log.pageCount {
      let now = Self.read(page, tracker.region, slots)
      Tally.add(.checks, slots.count)
      for (slot, (held, real)) in zip(copy[page], now).enumerated() where held != nil && real != nil && held != real {
        findings.note("\(moment): page \(page), slot \(slot) holds \(real!), the copy \(held!): a write was lost")
      }
      copy[page] = now
    }
  }

  /// Changes meanwhile are nobody's; from the return on, everything counts again.
  mutating func pauseForAMoment() throws {
    try tracker.pause()
    sched_yield()
    try tracker.resume()
    covered = log.started.snapshot
    // What was written before the pause is still owed.
    try collect(afterPause: true)
  }

  func stop() throws { try tracker.stop() }
}
