import CTestSupport
import Foundation
import SystemPackage
import Testing

@testable import PinKit

/// How a program comes to have its memory locked.
enum Locking: String, CaseIterable, Sendable, Codable {
  /// `mlockall(MCL_FUTURE)` before anything is mapped.
  case before
  /// `mlockall(MCL_CURRENT | MCL_FUTURE)` when all is mapped.
  case after
  case both

  func beginning() { if self != .after { check(mlockall(CInt(MCL_FUTURE)), is: 0, "mlockall") } }
  func mapped() { if self != .before { check(mlockall(CInt(MCL_CURRENT) | CInt(MCL_FUTURE)), is: 0, "mlockall") } }

  static let isPossible = geteuid() == 0 && ct_has_sanitizer() == 0
  static let reason: Comment = "needs root, and no sanitizer, which makes mlockall(2) do nothing"
}

/// A daemon that locks its memory: the kernel fills every mapping at once, the pool's own among them, and refuses to drop what is locked.
@Suite("Programs that lock their memory") struct LockedMemoryTests {
  private static let pages = 96

  private static func space() throws -> AddressSpace {
    ct_deadline(120)
    return try AddressSpace.forTests()
  }

  private static func content(_ page: Int) -> UInt8 { UInt8(truncatingIfNeeded: page * 7 + 1) }

  @Test(
    "K5, W5: a region over a store reads what the store has, and the store gets what was written, however memory was locked",
    .enabled(if: Locking.isPossible, Locking.reason), arguments: Locking.allCases)
  func store(_ locking: Locking) async {
    await #expect(processExitsWith: .success) { [locking = locking as Locking] in
      locking.beginning()
      let space = try Self.space()
      let store = UnrulyStore(pages: Self.pages, Self.content)
      let region = try space.map(.file(store, fillAround: .block(4)), pages: Self.pages)
      // Some are there, and some have changed, when the rest is locked.
      region.poke(200, 3)
      check(region.peek(40), is: Self.content(40))
      locking.mapped()
      for page in 0..<Self.pages { check(region.peek(page, at: 9), is: Self.content(page), "page \(page)") }
      for page in stride(from: 1, to: Self.pages, by: 3) { region.poke(201, page) }
      try region.flush()
      for page in 0..<Self.pages {
        check(
          store.durableByte(page), is: page % 3 == 1 ? 201 : page == 3 ? 200 : Self.content(page),
          "page \(page) in the store")
      }
      try check(region.reclaim(0..<Self.pages), is: Self.pages)
      for page in 0..<Self.pages { check(region.peek(page, at: 9), is: Self.content(page), "page \(page) again") }
      check(region.peek(4), is: 201)
      try region.unmap()
      try space.close()
    }
  }

  @Test(
    "K5, W5: the file of a region has after the process what was written under a lock",
    .enabled(if: Locking.isPossible, Locking.reason), arguments: Locking.allCases)
  func file(_ locking: Locking) async {
    await #expect(processExitsWith: .success) { [locking = locking as Locking] in
      let directory = try ImageDirectory()
      locking.beginning()
      let space = try Self.space()
      do {
        let store = try FileStore(path: directory("file"), creating: Self.pages * 4096)
        let region = try space.map(.file(store), pages: Self.pages)
        for page in 0..<Self.pages { region.poke(Self.content(page), page) }
        try region.unmap()
      }
      let store = try FileStore(path: directory("file"))
      let region = try space.map(.file(store), pages: Self.pages)
      locking.mapped()
      for page in 0..<Self.pages { check(region.peek(page), is: Self.content(page), "page \(page)") }
      for page in 0..<Self.pages where page % 2 == 0 { region.poke(99, page) }
      try region.flush()
      try region.unmap()
      let bytes = try Data(contentsOf: URL(fileURLWithPath: directory("file")))
      for page in 0..<Self.pages {
        check(bytes[page * 4096], is: page % 2 == 0 ? 99 : Self.content(page), "page \(page) in the file")
      }
      try space.close()
    }
  }

  @Test(
    "K5, W6: snapshots and clones of a region over a store have its bytes under a lock",
    .enabled(if: Locking.isPossible, Locking.reason), arguments: Locking.allCases)
  func copies(_ locking: Locking) async {
    await #expect(processExitsWith: .success) { [locking = locking as Locking] in
      locking.beginning()
      let space = try Self.space()
      let store = UnrulyStore(pages: Self.pages, Self.content)
      let region = try space.map(.file(store, fillAround: .exact), pages: Self.pages)
      region.poke(200, 3)
      locking.mapped()
      let snapshot = try region.snapshot()
      for page in 0..<8 { region.poke(201, page) }
      for page in 0..<Self.pages {
        try check(snapshot.read(page)[0], is: page == 3 ? 200 : Self.content(page), "page \(page) of the snapshot")
      }
      snapshot.close()
      let clone = try region.clone()
      for page in 4..<12 { region.poke(202, page) }
      for page in 8..<16 { clone.poke(203, page) }
      for page in 0..<Self.pages {
        let before = page < 8 ? 201 : Self.content(page)
        check(region.peek(page), is: (4..<12).contains(page) ? 202 : before, "page \(page)")
        check(clone.peek(page), is: (8..<16).contains(page) ? 203 : before, "page \(page) of the clone")
      }
      try clone.unmap()
      try region.flush()
      for page in 0..<Self.pages { check(store.durableByte(page), is: region.peek(page), "page \(page) in the store") }
      try region.unmap()
      try space.close()
    }
  }

  @Test(
    "K5: pages that the program has the kernel populate come from the store, and what it drops does",
    arguments: [false, true])
  func populated(_ isForWriting: Bool) async {
    await #expect(processExitsWith: .success) { [isForWriting = isForWriting as Bool] in
      let space = try Self.space()
      let store = UnrulyStore(pages: Self.pages, Self.content)
      let region = try space.map(.file(store, fillAround: .exact), pages: Self.pages)
      let advice: CInt = isForWriting ? 23 : 22
      let start = unsafe UnsafeMutableRawPointer(bitPattern: region.addresses.start)!
      check(unsafe madvise(start, 8 * 4096, advice), is: 0)
      // Whatever fills the pool's file without the region's knowing: here the pool's own mapping of it.
      let pool = try #require(region.frames).directAddresses(of: 0).start
      for page in 8..<16 { check(ct_load(UInt64(pool) + UInt64(page * 4096)), is: 0) }
      // As where room cannot be made: a part of a huge page that cannot be split.
      Injection.arm(.copy, .fileExists, times: 2)
      check(region.peek(20), is: Self.content(20))
      check(Injection.count, is: 2)
      Injection.disarm()
      check(unsafe madvise(start + 8 * 4096, 4 * 4096, advice), is: 0)
      for page in 0..<Self.pages { check(region.peek(page), is: Self.content(page), "page \(page)") }
      region.poke(77, 9)
      check(unsafe madvise(start, 16 * 4096, MADV_DONTNEED), is: 0)
      for page in 0..<16 { check(region.peek(page), is: page == 9 ? 77 : Self.content(page), "page \(page)") }
      region.poke(78, 10)
      check(unsafe madvise(start, 16 * 4096, MADV_REMOVE), is: 0)
      for page in 0..<16 { _ = ct_load(UInt64(pool) + UInt64(page * 4096)) }
      // What had changed the program has destroyed itself: written, or populated by writing.
      for page in 12..<16 { check(region.peek(page), is: Self.content(page), "page \(page)") }
      if !isForWriting { for page in 0..<9 { check(region.peek(page), is: Self.content(page), "page \(page)") } }
      try region.unmap()
      try space.close()
    }
  }

  @Test(
    "K5, W5: a clone on huge pages and its original do not see each other's writes under a lock",
    .enabled(if: Locking.isPossible && HugePageSetting.isOurs, Locking.reason), arguments: Locking.allCases)
  func hugeClone(_ locking: Locking) async {
    await #expect(processExitsWith: .success) { [locking = locking as Locking] in
      try HugePageSetting.allowed {
        locking.beginning()
        let space = try Self.space()
        let region = try space.map(.pool(hugePages: .prefer), pages: 2048)
        for page in 0..<2048 { region.poke(1, page) }
        locking.mapped()
        let clone = try region.clone()
        let tracker = try region.trackWrites(.handlerThread)
        // The watchdog puts huge mappings back meanwhile.
        for round in 0..<4 {
          Kernel.pause(nanoseconds: 200_000_000)
          for page in stride(from: round, to: 2048, by: 97) { clone.poke(2, page) }
          for page in stride(from: round, to: 2048, by: 89) { region.poke(3, page) }
          let dirty = try tracker.collect()
          for page in stride(from: round, to: 2048, by: 89) { check(dirty.contains(page), "page \(page) is in the set") }
          for page in stride(from: round, to: 2048, by: 97) { check(clone.peek(page), is: 2) }
          for page in stride(from: round, to: 2048, by: 89) { check(region.peek(page), is: 3) }
        }
        try tracker.stop()
        try clone.unmap()
        try region.unmap()
        try space.close()
      }
    }
  }

  @Test(
    "K5: what is locked can be discarded, whatever has it protected, and reads as zeros",
    .enabled(if: Locking.isPossible, Locking.reason), arguments: Mechanisms.all)
  func discard(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      let space = try Self.space()
      Locking.after.mapped()
      for subject in [Subject.anonymous, .adoptedAnonymous, .pool] {
        try subject.with(space, pages: 16) { region in
          try region.fill(with: 1)
          try region.discard(0..<2)
          let tracker = try region.trackWrites(mechanism)
          let snapshot = try region.snapshot()
          _ = try tracker.collect()
          Locking.after.mapped()
          try region.discard(4..<8)
          try check(region.tryDiscard(8..<9), is: .done)
          for page in 0..<16 {
            check(region.peek(page), is: page < 2 || (4..<9).contains(page) ? 0 : 1, "\(subject) \(page)")
          }
          let dirty = try tracker.collect()
          check((4..<9).allSatisfy { dirty.contains($0) }, "\(subject): \(dirty.runs)")
          for page in 0..<16 {
            try check(snapshot.read(page)[0], is: page < 2 ? 0 : 1, "\(subject) \(page) of the snapshot")
          }
          snapshot.close()
          for page in 0..<16 { region.poke(3, page) }
          check((0..<16).allSatisfy { region.peek($0) == 3 }, "\(subject) is written on")
          try tracker.stop()
        }
      }
      try space.close()
    }
  }

  @Test(
    "K5: a discard of adopted shared memory that is locked changes nothing and says what to do",
    .enabled(if: Locking.isPossible, Locking.reason))
  func discardShared() async {
    await #expect(processExitsWith: .success) {
      let space = try Self.space()
      try Subject.adoptedShared.with(space, pages: 16) { region in
        try region.fill(with: 1)
        Locking.after.mapped()
        do throws(PinError) {
          try region.discard(4..<8)
          Issue.record("discarded")
        } catch {
          check(error.code, is: .unsupported)
          check(error.advice.contains("munlock"), error.description)
        }
        check((0..<16).allSatisfy { region.peek($0) == 1 }, "nothing has changed")
        check(munlockall(), is: 0)
        try region.discard(4..<8)
        check(region.peek(5), is: 0)
      }
      try space.close()
    }
  }

  @Test(
    "K5: pages that clones share, or had to themselves, can be discarded under a lock, and frames are used again clean",
    .enabled(if: Locking.isPossible, Locking.reason), arguments: Mechanisms.synchronous)
  func clones(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      let space = try Self.space()
      Locking.before.beginning()
      for round in 0..<4 {
        let region = try space.map(.pool, pages: 64)
        check((0..<64).allSatisfy { region.peek($0) == 0 }, "fresh in round \(round)")
        try region.fill(with: 1)
        let clone = try region.clone(mechanism: mechanism)
        for page in 0..<32 { clone.poke(2, page) }
        for page in 16..<48 { region.poke(3, page) }
        try clone.discard(8..<24)
        try region.discard(40..<56)
        for page in 0..<64 {
          check(clone.peek(page), is: (8..<24).contains(page) ? 0 : page < 32 ? 2 : 1, "page \(page) of the clone")
          check(region.peek(page), is: (40..<56).contains(page) ? 0 : (16..<48).contains(page) ? 3 : 1, "page \(page)")
        }
        let second = try clone.clone(mechanism: mechanism)
        for page in 0..<64 { second.poke(4, page) }
        check((0..<8).allSatisfy { clone.peek($0) == 2 }, "the clone of the clone wrote into it")
        try second.unmap()
        try clone.unmap()
        try region.unmap()
      }
      try space.close()
    }
  }

  @Test(
    "K5, S2: what is locked can be sealed and opened, by name and by time",
    .enabled(if: Locking.isPossible, Locking.reason), arguments: Locking.allCases)
  func seal(_ locking: Locking) async {
    await #expect(processExitsWith: .success) { [locking = locking as Locking] in
      locking.beginning()
      let space = try Self.space()
      let region = try space.map(.pool, pages: 16)
      try region.setSealer(RecordingSealer(), SealingOptions(idleSeconds: 0.2))
      for page in 0..<16 { region.poke(UInt8(page + 1), page) }
      locking.mapped()
      try region.seal(0..<8)
      for page in 0..<8 {
        try check(region.isSealed(page), "page \(page) is sealed")
        try check(region.rawByte(page) != UInt8(page + 1), "page \(page) is plain in its frame")
      }
      check(region.peek(3), is: 4)
      try check(!region.isSealed(3), "a touch opens")
      // Nobody touches the others any more.
      check(
        spin { (try? (0..<16).allSatisfy { try region.isSealed($0) }) == true }, is: true, "sealed by time")
      for page in 0..<16 { check(region.peek(page), is: UInt8(page + 1)) }
      try region.discard(0..<16)
      for page in 0..<16 { check(region.peek(page), is: 0) }
      try region.unmap()
      try space.close()
    }
  }
}
