import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// The sweep, other processes, and ends at odd moments.
@Suite("Snapshot lifetimes") struct SnapshotLifeTests {
  private typealias Interplay = SnapshotInterplayTests

  @Test("W6: a sweep keeps all that holds something, and no more", arguments: Combination.snapshots)
  func sweep(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    let pages = combination.subject == .hugetlb ? 4 : 1000
    try combination.subject.with(space, pages: pages) { region in
      try region.write(version: 1, to: 0..<pages / 2)
      let snapshot = try region.snapshot(.init(mechanism: combination.mechanism, sweep: true))
      let wanted = pages / 2 * region.pageSize
      #expect(spin { snapshot.capturedBytes == wanted })
      #expect(try snapshot.pages(unlike: { $0 < pages / 2 ? 1 : 0 }) == [])
      try region.write(version: 2, to: 0..<pages)
      #expect(snapshot.capturedBytes == wanted)
      #expect(try snapshot.pages(unlike: { $0 < pages / 2 ? 1 : 0 }) == [])
      // One that stops in the middle, at its limit, and one whose snapshot goes.
      let second = try region.snapshot(.init(captureLimit: 100 * 4096, sweep: true))
      try region.snapshot(.init(sweep: true)).close()
      #expect(second.capturedBytes <= 100 * 4096)
    }
    try space.close()
  }

  @Test("W6: closing a space in the middle of a sweep", arguments: Mechanisms.synchronous)
  func closeDuringSweep(_ mechanism: WriteTracking.Mechanism) throws {
    for _ in 0..<20 {
      let space = try AddressSpace.forTests()
      let region = try space.map(Interplay.memory, pages: 500)
      try region.write(version: 1, to: 0..<500)
      let snapshot = try region.snapshot(.init(mechanism: mechanism, sweep: true))
      try space.close()
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
    }
  }

  @Test(
    "W6: a child of fork() has no snapshots, and the parent's do not notice it",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals and has no child of fork()"),
    arguments: Mechanisms.synchronous)
  func fork(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      for inherits in [false, true] {
        var configuration = AddressSpace.Configuration()
        configuration.inheritsAcrossFork = inherits
        configuration.logger = LogCapture().logger
        let space = try AddressSpace(configuration: configuration)
        let region = try space.map(.anonymous(hugePages: .never), pages: 64)
        try region.write(version: 1, to: 0..<64)
        let snapshot = try region.snapshot(.init(mechanism: mechanism, sweep: inherits))
        try region.write(version: 2, to: 0..<8)
        // What a child does first may need a lock of the runtime that a thread held which it does not have.
        check(Self.refusals(snapshot, region), is: 0)
        let process = ct_fork()
        if process == 0 {
          ct_unblock_signals()
          ct_alarm(30)
          let refused = Self.refusals(snapshot, region)
          snapshot.close()
          ct_exit(refused == 3 ? 0 : 1)
        }
        try region.write(version: 2, to: 8..<16)
        check(ct_wait(process), is: 0)
        try region.write(version: 2, to: 16..<64)
        try check(snapshot.pages(unlike: { _ in 1 }), is: [])
        try space.close()
      }
    }
  }

  /// How many calls are refused because this is another process.
  private static func refusals(_ snapshot: Snapshot, _ region: Region) -> Int {
    var count = code({ _ = try snapshot.read(-1) }) == .outOfBounds ? 0 : -1
    if code({ _ = try snapshot.read(0) }) == .notInherited { count += 1 }
    if code({ _ = try snapshot.storedRuns() }) == .notInherited { count += 1 }
    if code({ _ = try region.snapshot().close() }) == .notInherited { count += 1 }
    return count
  }

  @Test("The last reference may go inside a first-write callback, where snapshots can be neither taken nor read")
  func insideCallback() throws {
    try Interplay.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let held = Mutex<Snapshot?>(nil)
      let codes = Mutex<[PinError.Code?]>([])
      let tracker = try region.trackWrites(.handlerThread) { _ in
        guard let snapshot = held.withLock({ $0.take() }) else { return }
        codes.withLock {
          $0 = [code { _ = try snapshot.read(0) }, code { _ = try region.snapshot() }, code { try region.endSnapshots() }]
        }
      }
      let first = try region.snapshot()
      held.withLock { $0 = first }
      let second = try region.snapshot()
      try region.write(version: 2, to: 3..<4)
      #expect(codes.withLock { $0 } == [.wouldDeadlock, .wouldDeadlock, .wouldDeadlock])
      #expect(try second.pages(unlike: { _ in 1 }) == [])
      #expect(try first.pages(unlike: { _ in 1 }) == [])
      try tracker.stop()
    }
  }

  @Test("A region lives as long as a snapshot of it; dropping both ends all") func ownership() throws {
    weak var space: AddressSpace?
    weak var set: SnapshotSet?
    do {
      var snapshot: Snapshot?
      do {
        let made = try AddressSpace.forTests()
        space = made
        let region = try made.map(Interplay.memory, pages: 64)
        try region.write(version: 1, to: 0..<64)
        snapshot = try region.snapshot(.init(sweep: true))
        set = region.attachments.find(SnapshotSet.self)
        try region.write(version: 2, to: 0..<64)
      }
      #expect(try snapshot?.pages(unlike: { _ in 1 }) == [])
      #expect(space != nil)
      snapshot = nil
    }
    #expect(spin { space == nil && set == nil })
  }

  @Test("A history of ten thousand snapshots unwinds without recursion") func longChain() throws {
    try Interplay.with(pages: 4) { _, region in
      let first = try region.snapshot()
      for round in 0..<10_000 {
        if round % 1000 == 0 { try region.write(version: UInt64(round + 1), to: 0..<2) }
        try region.snapshot().close()
      }
      #expect(try first.pages(unlike: { _ in 0 }) == [])
      let last = try region.snapshot()
      let changes = try last.changes(since: first)
      #expect(changes.contains(0) && changes.contains(1))
      first.close()
      last.close()
    }
  }
}
