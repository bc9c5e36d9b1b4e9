import CTestSupport
import Glibc
import SystemPackage
import Synchronization
import Testing

@testable import PinKit

/// What happens when there is no room for bytes that are owed.
@Suite("Snapshot limits") struct SnapshotLimitTests {
  private typealias Interplay = SnapshotInterplayTests

  @Test("W5: a held writer goes on when the snapshot closes, and reads never wait", arguments: Mechanisms.synchronous)
  func holds(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { space, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism, captureLimit: 8 * 4096))
      let done = Shared()
      let writer = TestThread {
        for page in 0..<64 {
          try region.write(version: 2, to: CollectionOfOne(page))
          done.value = page + 1
        }
      }
      try #require(spin { space.statistics.heldWrites > 0 })
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      yieldForAWhile(milliseconds: 20)
      #expect(done.value == 8)
      #expect(snapshot.capturedBytes == 8 * 4096)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      snapshot.close()
      try writer.join()
      #expect(done.value == 64)
      #expect(try region.snapshot().pages(unlike: { _ in 2 }) == [])
    }
  }

  @Test(
    "W5, N8: nor while somebody waits for the held writer to take rights away", arguments: Mechanisms.synchronous)
  func holdsBesideProtect(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { space, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism, captureLimit: 8 * 4096))
      let writer = TestThread { for page in 0..<40 { try region.store(UInt64(2), toByteOffset: page * 4096) } }
      try #require(spin { space.statistics.heldWrites > 0 })
      let protector = TestThread { try region.protect(60..<61) }
      _ = spin(forAtMost: 5) { protector.hasEnded || protector.isAsleep }
      #expect(!protector.hasEnded)
      let reader = TestThread { for page in 0..<64 { _ = try snapshot.read(page) } }
      let hasRead = spin { reader.hasEnded }
      #expect(hasRead, "a read waits for a writer")
      if hasRead { #expect(try snapshot.pages(unlike: { _ in 1 }) == []) }
      snapshot.close()
      for thread in [reader, writer, protector] { try thread.join() }
      #expect(errorCode { try region.store(UInt64(3), toByteOffset: 60 * 4096) } == .accessDenied)
    }
  }

  @Test(
    "W6: a snapshot is not given up for the sake of pages that nobody wrote, up to the last page of its limit",
    arguments: Mechanisms.synchronous)
  func neighboursWithoutRoom(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism, captureLimit: 7 * 4096, atLimit: .giveUp))
      // The sixth and the seventh would take neighbours along.
      try region.write(version: 2, to: [0, 8, 16, 24, 32, 41, 49])
      #expect(snapshot.capturedBytes == 7 * 4096)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      try region.write(version: 2, to: [57])
      #expect(code { _ = try snapshot.read(0) } == .snapshotLost)
    }
  }

  @Test(
    "Pages that callbacks were told of, and that there was no room to open, are told of again when their time comes",
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func toldAgain(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let told = Mutex<[FirstWrite]>([])
      let tracker = try region.trackWrites(mechanism, options: .init(faultAround: .adaptive())) { write in
        told.withLock { $0.append(write) }
      }
      let snapshot = try region.snapshot(.init(mechanism: mechanism, captureLimit: 6 * 4096))
      try region.write(version: 2, to: [0, 8, 16, 24, 32, 41])
      #expect(told.withLock { $0.last }?.opened == 40..<44)
      _ = try tracker.collect()
      snapshot.close()
      told.withLock { $0 = [] }
      try region.write(version: 3, to: [42])
      #expect(told.withLock { $0.map(\.page) } == [42])
    }
  }

  @Test("W5: a held writer goes on when pages are released", arguments: Mechanisms.synchronous)
  func releases(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { space, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism, captureLimit: 8 * 4096))
      let writer = TestThread { try region.write(version: 2, to: 0..<64) }
      try #require(spin { space.statistics.heldWrites > 0 })
      for start in stride(from: 0, to: 64, by: 4) {
        for page in start..<start + 4 { #expect(try snapshot.word(page) == Pattern.word(page, 1, 0)) }
        try snapshot.release(start..<start + 4)
      }
      try writer.join()
      #expect(code { _ = try snapshot.read(5) } == .released)
      #expect(try snapshot.storedRuns() == [])
      #expect(snapshot.capturedBytes == 0)
    }
  }

  @Test("W5: a discard waits as a writer does, and others go on meanwhile", arguments: Mechanisms.synchronous)
  func heldDiscard(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { _, region in
      try region.write(version: 1, to: 0..<64)
      let tracker = try region.trackWrites(mechanism)
      let snapshot = try region.snapshot(.init(captureLimit: 8 * 4096))
      let dropper = TestThread { try region.discard(0..<64) }
      try #require(spin { dropper.isAsleep })
      for _ in 0..<10 { _ = try tracker.collect() }
      #expect(!dropper.hasEnded)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      snapshot.close()
      try dropper.join()
      #expect(try tracker.collect().runs == [0..<64])
      #expect(try region.load(fromByteOffset: 0, as: UInt64.self) == 0)
    }
  }

  @Test(
    "W6: a snapshot that gives up says so, takes the older ones along, and lets writers go on",
    arguments: Mechanisms.synchronous)
  func givesUp(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { space, region in
      try region.write(version: 1, to: 0..<64)
      let first = try region.snapshot(.init(mechanism: mechanism))
      try region.write(version: 2, to: 0..<4)
      let second = try region.snapshot(.init(captureLimit: 8 * 4096, atLimit: .giveUp))
      try region.write(version: 3, to: 0..<64)
      for snapshot in [first, second] {
        #expect(code { _ = try snapshot.read(0) } == .snapshotLost)
        #expect(code { _ = try snapshot.storedRuns() } == .snapshotLost)
        #expect(snapshot.failure?.advice.contains("limit") == true)
      }
      // One that is newer does not need what was lost.
      let third = try region.snapshot()
      try region.write(version: 4, to: 0..<64)
      #expect(try third.pages(unlike: { _ in 3 }) == [])
      #expect(space.statistics.heldWrites == 0)
    }
  }

  @Test("When the newest snapshot closes, its limit goes with it", arguments: Mechanisms.synchronous)
  func limitsAreHandedOver(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { space, region in
      try region.write(version: 1, to: 0..<64)
      let first = try region.snapshot(.init(mechanism: mechanism))
      let second = try region.snapshot(.init(captureLimit: 4 * 4096))
      let writer = TestThread { try region.write(version: 2, to: 0..<64) }
      try #require(spin { space.statistics.heldWrites > 0 })
      second.close()
      try writer.join()
      #expect(try first.pages(unlike: { _ in 1 }) == [])
    }
  }

  @Test("Unmapping does not wait for writers that are held", arguments: Mechanisms.synchronous)
  func unmapUnderHeldWriter(_ mechanism: WriteTracking.Mechanism) throws {
    try Interplay.with { space, region in
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism, captureLimit: 4096))
      let writer = TestThread { try region.write(version: 2, to: 0..<64) }
      try #require(spin { space.statistics.heldWrites > 0 })
      try region.unmap()
      try writer.join()
      #expect(code { _ = try snapshot.read(63) } == .snapshotLost)
    }
  }

  @Test("W6: no memory for a copy: the snapshot is given up, the writer goes on", arguments: Mechanisms.synchronous)
  func noMemory(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let region = try space.map(.anonymous(hugePages: .never), pages: 64)
      try region.write(version: 1, to: 0..<64)
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      try region.write(version: 2, to: 0..<4)
      Injection.arm(.madvise, .noMemory)
      try region.write(version: 2, to: 40..<64)
      check(Injection.count, is: 1)
      check(code { _ = try snapshot.read(0) } == .snapshotLost, "\(String(describing: snapshot.failure))")
      check(snapshot.failure?.errno, is: .noMemory)
      snapshot.close()
      // A kernel that does not know MADV_POPULATE_WRITE gives memory when it is written.
      Injection.arm(.madvise, .invalidArgument, times: 1000)
      let second = try region.snapshot()
      try region.write(version: 3, to: 0..<64)
      try check(second.pages(unlike: { $0 < 4 || $0 >= 40 ? 2 : 1 }), is: [])
      Injection.disarm()
      try space.close()
    }
  }

  @Test(
    "W6: what is opened along at the limit on mappings was kept",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer's own mappings fail at the limit"), .timeLimit(.minutes(60)))
  func mapCount() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(150)
      let space = try AddressSpace.forTests()
      let pages = 140_000
      let region = try space.map(.anonymous(hugePages: .never), pages: pages)
      let addresses = region.addresses
      for page in 0..<pages { try region.store(UInt64(page) + 1, toByteOffset: page * 4096) }
      let tracker = try region.trackWrites(.mprotect)
      let snapshot = try region.snapshot()
      for page in stride(from: 0, to: pages, by: 2) { ct_store(UInt64(addresses.start) + UInt64(page * 4096), 0xff) }
      check(space.statistics.widenedOpenings > 0, "nothing was widened")
      for page in 0..<pages { ct_store(UInt64(addresses.start) + UInt64(page * 4096), 0xee) }
      let bad = try (0..<pages).first { try snapshot.word($0) != UInt64($0) + 1 }
      check(bad == nil, "page \(bad ?? -1) is wrong")
      try tracker.stop()
      try space.close()
    }
  }
}
