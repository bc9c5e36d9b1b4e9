import Glibc
import Synchronization
import Testing

@testable import PinKit

/// A window that is used all the time while everything happens to its region. `PINKIT_WINDOW_ROUNDS` sets how much does.
@Suite("Windows under stress", .serialized) struct WindowStressTests {
  @Test(
    "N2/W6: no write is lost, none is torn by a snapshot or a clone, trackers know of all", arguments: Mechanisms.synchronous
  )
  func races(_ mechanism: WriteTracking.Mechanism) throws {
    let run = try WindowRun(mechanism)
    let rounds = environmentNumber("PINKIT_WINDOW_ROUNDS", or: 250)
    try run.go(rounds: rounds)
    for finding in run.findings.all { Issue.record("\(finding) (\(mechanism))") }
    #expect(run.written >= rounds)
  }
}

/// The writer stores the same number to two pages of the window inside one access; the other thread's changes wait for that.
private final class WindowRun: Sendable {
  private static let pages = 4..<10
  private static let offsets = (0, 3 * 4096 + 64)
  private static let pair = (4, 7)

  let findings = Findings()
  private let space: AddressSpace
  private let region: Region
  private let window: DirectMapping
  private let tracker: WriteTracker
  private let mechanism: WriteTracking.Mechanism
  private let isOver = Shared()
  private let started = Shared()
  private let finished = Shared()

  init(_ mechanism: WriteTracking.Mechanism) throws {
    space = try AddressSpace.forTests()
    region = try space.map(.pool, pages: 32)
    for page in 0..<32 { try region.setWord(page, 1, UInt64(page)) }
    self.mechanism = mechanism
    tracker = try region.trackWrites(mechanism)
    window = try DirectMapping(region, pages: Self.pages)
    _ = try tracker.collect()
  }

  var written: Int { finished.value }

  private func numbers(_ bytes: UnsafeMutableRawBufferPointer) -> (UInt64, UInt64) {
    let second = unsafe bytes.load(fromByteOffset: Self.offsets.1, as: UInt64.self)
    atomicMemoryFence(ordering: .acquiring)
    return unsafe (bytes.load(fromByteOffset: Self.offsets.0, as: UInt64.self), second)
  }
  private func numbers(of region: Region) throws -> (UInt64, UInt64) {
    (try region.word(Self.pair.0), try region.word(Self.pair.1, 8))
  }

  private func write() throws {
    while isOver.value == 0 {
      let next = UInt64(started.add())
      try unsafe window.withBytes { bytes in
        unsafe bytes.storeBytes(of: next, toByteOffset: Self.offsets.0, as: UInt64.self)
        atomicMemoryFence(ordering: .releasing)
        if next % 64 == 0 { sched_yield() }
        unsafe bytes.storeBytes(of: next, toByteOffset: Self.offsets.1, as: UInt64.self)
      }
      finished.add()
      let seen = try numbers(of: region)
      if seen != (next, next) { findings.note("\(next) was written, the processor reads \(seen)") }
      let own = try unsafe window.withBytes { unsafe numbers($0) }
      if own != (next, next) { findings.note("\(next) was written, the window holds \(own)") }
    }
  }

  private func read() throws {
    var last: UInt64 = 0
    while isOver.value == 0 {
      let done = UInt64(finished.value)
      let (first, second) = try unsafe window.withBytes { unsafe numbers($0) }
      if first < second || second < last || first < done {
        findings.note("a reader sees \(first), \(second) after \(last), \(done)")
      }
      last = second
    }
  }

  /// A moment between two accesses, not before any that was complete.
  private func check(_ seen: (UInt64, UInt64), after done: Int, _ what: String) {
    Tally.add(.checks, 2)
    if seen.0 != seen.1 { findings.note("\(what) is torn: \(seen)") }
    if seen.0 < UInt64(done) { findings.note("\(what) holds \(seen.0), and \(done) was complete") }
  }

  func go(rounds: Int) throws {
    let threads = [
      TestThread { [self] in try write() }, TestThread { [self] in try read() }, TestThread { [self] in try read() },
    ]
    defer {
      isOver.value = 1
      for thread in threads { try? thread.join() }
    }
    _ = spin { self.finished.value > 10 }
    var random = SeededRandom(seed: Seed.of(6))
    var covered = 0
    var snapshots: [(Snapshot, (UInt64, UInt64))] = []
    for round in 0..<rounds where findings.isEmpty {
      let done = finished.value
      defer { _ = spin { self.finished.value > done || !self.findings.isEmpty || threads[0].hasEnded } }
      switch random.next() % 6 {
      case 0:
        let clone = try region.clone(mechanism: mechanism)
        check(try numbers(of: clone), after: done, "a clone")
        let first = try numbers(of: clone)
        sched_yield()
        if try numbers(of: clone) != first { findings.note("a clone changes") }
        try clone.unmap()
      case 1:
        let snapshot = try region.snapshot()
        let seen = (try snapshot.word(Self.pair.0), try snapshot.word(Self.pair.1, 64))
        check(seen, after: done, "a snapshot")
        snapshots.append((snapshot, seen))
        if snapshots.count > 2 {
          let (old, then) = snapshots.removeFirst()
          let now = (try old.word(Self.pair.0), try old.word(Self.pair.1, 64))
          if now != then { findings.note("a snapshot held \(then), and now \(now)") }
          old.close()
        }
      case 2:
        let page = round % 3 + 5
        try region.protect(20..<24)
        try region.discard(page == 7 ? 5..<7 : page..<page + 1)
        try region.protect(20..<24, to: .readWrite)
      case 3: try region.setWord(8, 2, UInt64(round))
      default:
        let set = try tracker.collect()
        if done > covered, !set.contains(Self.pair.0) || !set.contains(Self.pair.1) {
          findings.note("write \(done) was complete, and \(set.runs) is all that was collected")
        }
        // What began before this may be in this set already.
        covered = started.value
      }
    }
    isOver.value = 1
    for thread in threads { try thread.join() }
    for (snapshot, _) in snapshots { snapshot.close() }
    let last = UInt64(finished.value)
    check(try numbers(of: region), after: Int(last), "the region")
    window.close()
    try tracker.stop()
    try region.unmap()
    let usage = try space.framePool().usage
    if usage != .init(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0) { findings.note("left over: \(usage)") }
    try space.close()
  }
}
