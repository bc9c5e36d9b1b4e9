import CTestSupport
import Glibc
import SystemPackage
import Synchronization
import Testing

@testable import PinKit

/// Snapshots beside everything else that may happen to a region.
@Suite("Snapshots and other calls") struct SnapshotInterplayTests {
  static let memory = Backing.anonymous(hugePages: .never)

  static func with(_ backing: Backing = memory, pages: Int = 64, _ body: (AddressSpace, Region) throws -> Void) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(backing, pages: pages)
    try body(space, region)
    try space.close()
  }

  // MARK: Bytes that go

  @Test("W6: what a discard drops was kept before", arguments: Combination.discardableSnapshots)
  func discard(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    let pages = combination.subject == .hugetlb ? 4 : 300
    try combination.subject.with(space, pages: pages) { region in
      // Half of the pages have never been touched.
      try region.write(version: 1, to: 0..<pages / 2)
      let expected = { $0 < pages / 2 ? UInt64(1) : 0 }
      let snapshot = try region.snapshot(.init(mechanism: combination.mechanism))
      try region.write(version: 2, to: 0..<1)
      try region.discard(0..<1)
      try region.discard(1..<pages)
      #expect(try region.load(fromByteOffset: region.pageSize, as: UInt64.self) == 0)
      #expect(try snapshot.pages(unlike: expected) == [])
      let second = try region.snapshot()
      try region.write(version: 3, to: 0..<pages)
      #expect(try snapshot.pages(unlike: expected) == [])
      #expect(try second.pages(unlike: { _ in 0 }) == [])
      #expect(try second.changes(since: snapshot).runs == [0..<pages])
    }
    try space.close()
  }

  @Test("W6: no snapshot is taken while pages are being dropped", arguments: Mechanisms.synchronous)
  func discardRaces(_ mechanism: WriteTracking.Mechanism) throws {
    for _ in 0..<30 {
      try Self.with(pages: 96) { _, region in
        try region.write(version: 1, to: 0..<96)
        let discards = Shared()
        let dropper = TestThread {
          for page in 0..<96 {
            try region.discard(page..<page + 1)
            discards.value = page + 1
          }
        }
        // In order, from the front: any snapshot is zeros up to some page, and bytes from there.
        var isFirst = true
        repeat {
          let before = discards.value
          let snapshot = try region.snapshot(.init(mechanism: mechanism))
          let after = discards.value
          let kept = try (0..<96).filter { try snapshot.word($0) != 0 }
          #expect(kept == Array(96 - kept.count..<96))
          #expect(96 - kept.count >= before && 96 - kept.count <= after + 1)
          snapshot.close()
          if isFirst { try region.endSnapshots() }
          isFirst = false
        } while discards.value < 96
        try dropper.join()
      }
    }
  }

  @Test(
    "W5/W6: a snapshot outlives its region: what it needs is kept when the region goes", arguments: Combination.snapshots)
  func unmap(_ combination: Combination) throws {
    let pages = combination.subject == .hugetlb ? 4 : 200
    let space = try AddressSpace.forTests()
    var snapshot: Snapshot?
    let expected = { $0 < pages / 2 ? UInt64(1) : 0 }
    try combination.subject.with(space, pages: pages) { region in
      try region.write(version: 1, to: 0..<pages / 2)
      snapshot = try region.snapshot(.init(mechanism: combination.mechanism))
      try region.write(version: 2, to: stride(from: 0, to: pages, by: 3))
      if combination.subject != .adoptedFile { try region.protect(1..<2, to: .none) }
      try region.unmap()
      #expect(try snapshot?.pages(unlike: expected) == [])
      #expect(snapshot?.failure == nil)
    }
    try space.close()
    #expect(try snapshot?.pages(unlike: expected) == [])
    #expect(try snapshot?.storedRuns() == [0..<pages / 2])
    #expect(code { _ = try snapshot?.region.snapshot() } == .unmapped)
    snapshot?.close()
  }

  @Test("A region that goes while its snapshot has no room left takes the snapshot with it, and says so")
  func unmapWithoutRoom() throws {
    for policy in [SnapshotOptions.LimitPolicy.holdWriters, .giveUp] {
      let space = try AddressSpace.forTests()
      let region = try space.map(Self.memory, pages: 64)
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(captureLimit: 8 * 4096, atLimit: policy))
      try space.close()
      #expect(code { _ = try snapshot.read(63) } == .snapshotLost)
      #expect(snapshot.failure?.code == .snapshotLost)
      snapshot.close()
    }
  }

  @Test(
    "W6: protect(_:to:) changes no bytes: they are kept when they do, and can be read meanwhile",
    arguments: Mechanisms.synchronous)
  func protect(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with { _, region in
      try region.write(version: 1, to: 0..<64)
      try region.protect(0..<8, to: .none)
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      try region.protect(8..<16, to: .none)
      try region.protect(16..<24, to: .readOnly)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      try region.protect(0..<24, to: .readWrite)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      try region.write(version: 2, to: 0..<64)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      try region.protect(0..<64, to: .none)
      let second = try region.snapshot()
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      #expect(try second.singlePages(unlike: { _ in 2 }) == [])
    }
  }

  @Test("W6: pages may lose and get rights while a snapshot is read", arguments: Mechanisms.synchronous)
  func protectRaces(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      let isOver = Shared()
      let other = TestThread {
        var round = 0
        while isOver.value == 0 {
          round += 1
          try region.protect(round % 32..<round % 32 + 16, to: [.none, .readOnly, .readWrite][round % 3])
        }
      }
      defer { isOver.value = 1 }
      for _ in 0..<100 { try #require(try snapshot.pages(unlike: { _ in 1 }) == []) }
      isOver.value = 1
      try other.join()
    }
  }

  @Test(
    "Pages dropped behind PinKit's back: the snapshot is given up, unless nothing was owed",
    arguments: [
      WriteTracking.Mechanism.handlerThread, .inPlace,
    ])
  func foreignRemoval(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      try region.write(version: 2, to: 0..<6)
      try Memory.advise(region.addresses(of: 0..<6), .dontNeed)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      let second = try region.snapshot()
      try Memory.advise(region.addresses(of: 40..<41), .dontNeed)
      #expect(code { _ = try snapshot.read(40) } == .snapshotLost)
      #expect(code { _ = try snapshot.read(3) } == .snapshotLost)
      #expect(code { _ = try second.read(3) } == .snapshotLost)
      // The next one begins anew.
      snapshot.close()
      second.close()
      let third = try region.snapshot()
      try region.write(version: 3, to: 0..<64)
      #expect(try third.word(40) == 0)
      #expect(try third.pages(unlike: { $0 < 6 || $0 == 40 ? 0 : 1 }) == [])
    }
  }

  @Test(
    "K3: when the region cannot be watched any more, pages that were not kept cannot be read",
    arguments: Mechanisms.synchronous)
  func failure(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      try region.write(version: 2, to: 0..<4)
      let protection = region.attachments.find(RegionProtection.self)!
      protection.fail(.refused)
      #expect(try snapshot.word(3) == Pattern.word(3, 1, 0))
      #expect(code { _ = try snapshot.read(63) } == .handlerLost)
      #expect(snapshot.failure?.code == .handlerLost)
      #expect(code { _ = try region.snapshot() } == .handlerLost)
      snapshot.close()
    }
  }

  // MARK: Trackers

  @Test(
    "A paused tracker does not lift the protection under a snapshot, nor does one that stops",
    arguments: Mechanisms.synchronous)
  func pausedTracker(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let tracker = try region.trackWrites(mechanism)
      try tracker.pause()
      let snapshot = try region.snapshot()
      try region.write(version: 2, to: 0..<8)
      try tracker.resume()
      try region.write(version: 2, to: 8..<16)
      try tracker.pause()
      try region.write(version: 2, to: 16..<24)
      try tracker.stop()
      try region.write(version: 2, to: 24..<64)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
    }
  }

  @Test("W5: sets of trackers stay right, and exact, beside a snapshot", arguments: Mechanisms.synchronous)
  func exactTracker(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let tracker = try region.trackWrites(mechanism)
      let snapshot = try region.snapshot()
      for pages in [[3, 10, 11, 50], [3, 4], [], [63]] {
        try region.write(version: 2, to: pages)
        let dirty = try tracker.collect()
        #expect(Array(dirty.pages) == pages)
        #expect(dirty.isExact)
        #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      }
      #expect(snapshot.capturedBytes == 6 * 4096)
    }
  }

  @Test("A region tracked by .asynchronous changes over, and its tracker is told of every page that may have been written")
  func changeOver() throws {
    try Self.with { _, region in
      try region.write(version: 1, to: 0..<32)
      let tracker = try region.trackWrites(.asynchronous)
      _ = try tracker.collect()
      try region.write(version: 2, to: 3..<4)
      let snapshot = try region.snapshot()
      #expect(tracker.mechanism == .handlerThread)
      let dirty = try tracker.collect()
      #expect(dirty.runs == [0..<32])
      #expect(dirty.exactPages.runs == [3..<4])
      try region.write(version: 3, to: 30..<40)
      #expect(try tracker.collect().contains(35))
      #expect(try snapshot.pages(unlike: { $0 == 3 ? 2 : $0 < 32 ? 1 : 0 }) == [])
      #expect(code { _ = try region.snapshot(.init(mechanism: .mprotect)) } == .inUse)
      #expect(code { _ = try region.snapshot(.init(mechanism: .asynchronous)) } == .unsupported)
    }
  }

  // MARK: Between snapshots

  @Test("changes(since:) has what was written or discarded in between", arguments: Mechanisms.synchronous)
  func changes(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with { _, region in
      let tracker = try region.trackWrites(mechanism)  // for exact sets
      try region.write(version: 1, to: 0..<64)
      let first = try region.snapshot()
      #expect(first.parent == nil)
      try region.write(version: 2, to: [1, 5])
      let second = try region.snapshot()
      second.close()
      try region.write(version: 3, to: [5, 9])
      try region.discard(20..<22)
      let third = try region.snapshot()
      #expect(second.parent == first.identity && third.parent == second.identity)
      #expect(Array(try second.changes(since: first).pages) == [1, 5])
      #expect(Array(try third.changes(since: second).pages) == [5, 9, 20, 21])
      #expect(Array(try third.changes(since: first).pages) == [1, 5, 9, 20, 21])
      #expect(try third.changes(since: third).isEmpty)
      #expect(code { _ = try first.changes(since: third) } == .invalidArgument)
      #expect(code { try region.endSnapshots() } == .inUse)
      first.close()
      third.close()
      try region.endSnapshots()
      let fourth = try region.snapshot()
      #expect(fourth.parent == nil)
      #expect(code { _ = try fourth.changes(since: third) } == .invalidArgument)
      _ = tracker
    }
  }

  @Test("Once snapshots have ended, writes cost nothing") func ended() throws {
    try Self.with { space, region in
      try region.write(version: 1, to: 0..<64)
      try region.snapshot(.init(mechanism: .handlerThread)).close()
      try region.write(version: 2, to: 0..<2)
      #expect(space.statistics.handlerThreadFaults > 0)
      try region.endSnapshots()
      let faults = space.statistics.handlerThreadFaults
      try region.write(version: 3, to: 0..<64)
      #expect(space.statistics.handlerThreadFaults == faults)
      try region.endSnapshots()
    }
  }

  @Test("A snapshot of sparse memory knows what is in it without touching it", arguments: Mechanisms.synchronous)
  func sparse(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with(pages: 4096) { _, region in
      try region.write(version: 1, to: 100..<110)
      try region.write(version: 1, to: 2000..<2001)
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      #expect(try snapshot.storedRuns() == [100..<110, 2000..<2001])
      try region.write(version: 2, to: 105..<120)
      try region.write(version: 2, to: 3000..<3001)
      try region.discard(2000..<2001)
      #expect(try snapshot.storedRuns() == [100..<110, 2000..<2001])
      // Whatever lies in chunks of 64 pages around those may have been looked at, nothing else.
      var visited: [Int] = []
      unsafe try snapshot.forEachStoredRun(upTo: 4) { pages, bytes in
        let count = bytes.count
        #expect(count == pages.count * 4096 && pages.count <= 4)
        visited += pages
      }
      #expect(visited == Array(100..<110) + [2000])
      let query = PageMap.Query(anyOf: .present, returned: [])
      var present = 0
      try PageMap().scan(region.addresses, query) { run, _ in present += run.count / 4096 }
      #expect(present < 400)
      #expect(snapshot.capturedBytes <= 11 * 4096)
    }
  }

  @Test("Arguments and states are checked") func refusals() throws {
    try Self.with(pages: 4) { space, region in
      #expect(code { _ = try region.snapshot(.init(captureLimit: -1)) } == .invalidArgument)
      #expect(code { _ = try region.snapshot(.init(mechanism: .asynchronous)) } == .unsupported)
      let snapshot = try region.snapshot(.init(mechanism: .mprotect))
      #expect(code { _ = try region.snapshot(.init(mechanism: .handlerThread)) } == .inUse)
      #expect(code { _ = try snapshot.read(4) } == .outOfBounds)
      #expect(code { _ = try snapshot.read(-1) } == .outOfBounds)
      let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8)
      defer { unsafe buffer.deallocate() }
      #expect(code { unsafe try snapshot.copy(0..<2, into: buffer) } == .invalidArgument)
      #expect(code { unsafe try snapshot.copy(3..<5, into: buffer) } == .outOfBounds)
      let other = try space.map(Self.memory, pages: 4).snapshot()
      #expect(code { _ = try snapshot.changes(since: other) } == .invalidArgument)
      snapshot.close()
      snapshot.close()
      #expect(code { _ = try snapshot.storedRuns() } == .closed)
      #expect(snapshot.identity.description.count == 32 && snapshot.identity != other.identity)
    }
  }

  @Test(
    "Pages known to be written stay so when a fault takes their neighbours along",
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func known(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with(pages: 512) { space, region in
      try region.write(version: 1, to: 0..<512)
      let tracker = try region.trackWrites(mechanism, options: .init(faultAround: .adaptive()))
      let snapshot = try region.snapshot()
      _ = try tracker.collect()
      let before = space.statistics.openedPages
      // The thirteenth fault takes 128 pages, three of which were written before.
      let written = [0, 100, 200, 300, 400, 111, 222, 333, 444, 480, 490, 500, 64]
      for page in written { try region.write(version: 2, to: page..<page + 1) }
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      let set = try tracker.collect()
      #expect(written.allSatisfy(set.exactPages.contains))
      #expect(set.exactPages.count == written.count)
      #expect(set.count == Int(space.statistics.openedPages - before))
      #expect(set.contains(127) && set.contains(1))
      snapshot.close()
    }
  }

  @Test("Captures and faults are counted") func statistics() throws {
    try Self.with { space, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot()
      try region.write(version: 2, to: 0..<64)
      snapshot.close()
      #expect(space.statistics.capturedPages == 64)
      #expect(space.statistics.heldWrites == 0)
    }
  }
}
