import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// What a signal handler makes of an access that it finds no reason for.
@Suite("W1, K5: how often a signal handler has an access tried again") struct SignalPatienceTests {
  enum Memory: String, Sendable, Codable, CaseIterable { case stored, sealed }

  /// More than a signal is worth that nothing explains.
  private static let manyTries = 600

  private static func region(_ memory: Memory, _ space: AddressSpace) throws -> Region {
    switch memory {
    case .stored: return try space.map(.file(UnrulyStore(pages: 8), fillAround: .exact), pages: 8)
    case .sealed:
      let region = try space.map(.pool, pages: 8)
      try region.setSealer(RecordingSealer())
      for page in 0..<8 { region.poke(UInt8(page + 1), page) }
      return region
    }
  }

  private static func pageAddresses(_ page: Int, of region: Region) -> AddressRange {
    AddressRange(start: region.addresses.start + UInt(page * 4096), count: 4096)
  }

  /// Counts how often the handler has had nothing to resolve of a page.
  private static func countTries(of page: Int) -> Shared {
    let tries = Shared()
    TestHooks.set(.tryingAgain) { if $0 == page { tries.add() } }
    return tries
  }

  @Test(
    "W1, K5: a writer goes on however long a pin for reading keeps its page claimed and mapped read-only",
    arguments: Memory.allCases)
  func claimed(_ memory: Memory) async {
    await #expect(processExitsWith: .success) { [memory = memory as Memory] in
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      let region = try Self.region(memory, space)
      for page in 0..<8 { check(region.peek(page), is: UInt8(page + 1)) }
      let clone = try region.clone()
      let held = HeldThreads(at: .mapped, 2..<3)
      let pinning = TestThread { try region.pin(2..<3, .unshare).unpin() }
      check(held.first(), "the pin has not left the frame")
      let tries = Self.countTries(of: 2)
      let writer = TestThread {
        ct_unblock_signals()
        region.poke(66, 2, at: 100)
      }
      while tries.value < Self.manyTries { Kernel.pause(nanoseconds: 1_000_000) }
      check(!writer.hasEnded, "it has written")
      TestHooks.set(.mapped, nil)
      held.letGo()
      try pinning.join()
      try writer.join()
      check(region.peek(2, at: 100), is: 66)
      check(clone.peek(2, at: 100), is: memory == .stored ? 3 : 0)
      check(space.statistics.unexplained, is: 0)
      try space.close()
    }
  }

  @Test("W1, K5: a writer goes on however long rights are missing while the wrprotect lock is held")
  func locked() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      let region = try Self.region(.stored, space)
      region.poke(9, 3)
      let tracker = try region.trackWrites()
      let held = HeldThreads(at: .exclusiveHeld, 0..<1)
      let collecting = TestThread { _ = try tracker.collect() }
      check(held.first(), "nobody has the lock")
      _ = PinKit.Memory.protect(Self.pageAddresses(3, of: region), .read)
      let tries = Self.countTries(of: 3)
      let writer = TestThread {
        ct_unblock_signals()
        region.poke(66, 3)
      }
      while tries.value < Self.manyTries { Kernel.pause(nanoseconds: 1_000_000) }
      _ = PinKit.Memory.protect(Self.pageAddresses(3, of: region), .readWrite)
      TestHooks.set(.exclusiveHeld, nil)
      held.letGo()
      try collecting.join()
      try writer.join()
      check(region.peek(3), is: 66)
      check(space.statistics.unexplained, is: 0)
      try space.close()
    }
  }

  @Test("K5: a signal that other code is the cause of is passed on, with nobody at the page")
  func notOurs() async {
    await #expect(processExitsWith: .success) {
      let space = try AddressSpace.forTriedFaults()
      let region = try Self.region(.stored, space)
      region.poke(9, 3)
      _ = PinKit.Memory.protect(Self.pageAddresses(3, of: region), .read)
      check(ct_try_store(UInt64(Self.pageAddresses(3, of: region).start), 66), is: SIGSEGV)
      check(space.statistics.unexplained, is: 1)
      _ = PinKit.Memory.protect(Self.pageAddresses(3, of: region), .readWrite)
      region.poke(66, 3)
      check(region.peek(3), is: 66)
      try space.close()
    }
  }
}
