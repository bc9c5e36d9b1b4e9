import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Snapshots of memory that several threads write without pause.
@Suite("Snapshot races", .serialized) struct SnapshotRaceTests {
  private static let rounds = 24

  private func race(
    _ combination: Combination, pages: Int, rounds: Int = rounds, options: SnapshotOptions = .init(),
    beside: @Sendable @escaping (Region) throws -> Void = { _ in }
  ) throws {
    let space = try AddressSpace.forTests()
    let seed = Seed.of(pages)
    try combination.subject.with(space, pages: pages) { region in
      let writers = CutWriters(region, writers: 2, seed: seed)
      var options = options
      options.mechanism = combination.mechanism
      writers.start()
      defer { do { try writers.stop() } catch { Issue.record("\(error)") } }
      let isOver = Shared()
      let other = TestThread { while isOver.value == 0 { try beside(region) } }
      defer {
        isOver.value = 1
        do { try other.join() } catch { Issue.record("\(error)") }
      }
      var open: [(snapshot: Snapshot, progress: [UInt64], horizon: [UInt64])] = []
      var random = SeededRandom(seed: seed)
      for round in 0..<rounds {
        let progress = writers.progress
        let snapshot = try region.snapshot(options)
        open.append((snapshot, progress, writers.horizon))
        for (index, old) in open.enumerated() {
          let flaw = try writers.flaw(in: old.snapshot, after: old.progress, before: old.horizon)
          try #require(flaw == nil, "round \(round), snapshot \(index) of \(open.count), seed \(seed)")
        }
        while open.count > 2 || (!open.isEmpty && random.chance(40)) {
          let closing = open.remove(at: Int.random(in: 0..<open.count, using: &random))
          if random.chance(50) { closing.snapshot.close() }
        }
      }
    }
    try space.close()
  }

  @Test(
    "W6/W5: a snapshot is one moment of all writers, and stays it, by itself and among others",
    arguments: Combination.snapshots)
  func oneMoment(_ combination: Combination) throws {
    try race(combination, pages: combination.subject == .hugetlb ? 2 : 48)
  }

  @Test("W6: the same with a sweep beside the writers", arguments: Combination.snapshots)
  func withSweep(_ combination: Combination) throws {
    try race(combination, pages: combination.subject == .hugetlb ? 2 : 200, options: .init(sweep: true))
  }

  @Test("W6/W5: the same with a tracker that collects", arguments: Mechanisms.synchronous)
  func withTracker(_ mechanism: WriteTracking.Mechanism) throws {
    let tracker = Mutex<WriteTracker?>(nil)
    try race(Combination(mechanism: mechanism, subject: .anonymous), pages: 64) { region in
      let tracker = try tracker.withLock { tracker in
        if tracker == nil { tracker = try region.trackWrites(mechanism) }
        return tracker!
      }
      _ = try tracker.collect()
    }
  }

  @Test(
    "W5/W6: memory that stays the program's goes on being written while its region ends",
    arguments: [Subject.adoptedAnonymous, .adoptedShared])
  func unmapUnderWriters(_ subject: Subject) throws {
    // A fault that is on its way as a signal when the region ends finds nobody who knows of it; one that waits is woken.
    let combination = Combination(mechanism: .handlerThread, subject: subject)
    for round in 0..<10 {
      let seed = Seed.of(round)
      let space = try AddressSpace.forTests()
      try combination.subject.with(space, pages: 200) { region in
        let writers = CutWriters(region, writers: 2, seed: seed, isForeign: true)
        writers.start()
        defer { do { try writers.stop() } catch { Issue.record("\(error)") } }
        let progress = writers.progress
        let snapshot = try region.snapshot(.init(mechanism: combination.mechanism))
        let horizon = writers.horizon
        try region.unmap()
        let flaw = try writers.flaw(in: snapshot, after: progress, before: horizon)
        try #require(flaw == nil, "seed \(seed)")
      }
      try space.close()
    }
  }

  @Test("W6: many rounds on memory where chunks are large", arguments: Mechanisms.synchronous)
  func manyRounds(_ mechanism: WriteTracking.Mechanism) throws {
    try race(Combination(mechanism: mechanism, subject: .anonymous), pages: 256, rounds: 100)
  }
}
