import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// Huge pages, children of fork(), and regions that go while a device is at work.
@Suite("A device's life", .serialized) struct DeviceLifeTests {
  @Test(
    "Huge pages are mirrored small, across clones and breaks of either side",
    .enabled(if: HugePageSetting.isOurs, "needs root, for shmem_enabled"), arguments: Mechanisms.synchronous)
  func huge(_ mechanism: WriteTracking.Mechanism) throws {
    try HugePageSetting.allowed {
      let pages = 4 * 512
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool(hugePages: .prefer), pages: pages)
      for page in 0..<pages { try region.setWord(page, 0, UInt64(page)) }
      let mirror = try SecondaryMMU(region)
      let some = Array(stride(from: 0, to: pages, by: 37))
      for page in some { #expect(try mirror.word(page) == UInt64(page)) }
      let clone = try region.clone(mechanism: mechanism)
      let other = try SecondaryMMU(clone)
      for page in some { #expect(try mirror.word(page) == UInt64(page) && other.word(page) == UInt64(page)) }
      try mirror.setWord(600, 0, 1)
      try clone.setWord(37, 0, 2)
      try other.setWord(1100, 0, 3)
      try region.setWord(74, 0, 4)
      let window = try DirectMapping(clone, pages: 510..<514)
      try window.setWord(512, 0, 5)
      for page in some + [512, 600, 1100] {
        let mine: UInt64 = [600: 1, 74: 4][page] ?? UInt64(page)
        let its: UInt64 = [37: 2, 1100: 3, 512: 5][page] ?? UInt64(page)
        #expect(try mirror.word(page) == mine && region.word(page) == mine)
        #expect(try other.word(page) == its && clone.word(page) == its)
      }
      try space.close()
    }
  }

  @Test(
    "N12: a child of fork() has no mirror, is told so, and disturbs nobody",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals and has no child of fork()"),
    arguments: Mechanisms.synchronous, [false, true])
  func forks(_ mechanism: WriteTracking.Mechanism, isPool: Bool) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, isPool = isPool as Bool] in
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let region = try space.map(isPool ? .pool : .anonymous(hugePages: .never), pages: 16)
      for page in 0..<16 { try region.setWord(page, 0, UInt64(page)) }
      let tracker = try region.trackWrites(mechanism)
      let held = Holder(try SecondaryMMU(region), try DirectMapping(region, pages: 4..<8))
      try held.mirror?.setWord(3, 0, 30)
      try held.window?.setWord(5, 0, 50)
      // Another thread is inside while the process forks.
      let isInside = Shared()
      let mayLeave = Shared()
      let mirror = held.mirror
      let reader = TestThread { [mirror] in
        try unsafe mirror?.withBytes(of: 9, for: .reading) { _ in
          isInside.value = 1
          _ = spin { mayLeave.value == 1 }
        }
      }
      check(spin { isInside.value == 1 }, "nobody is inside")
      let status = Fork.run {
        if errorCode({ _ = try held.mirror?.word(3) }) != .notInherited { return 1 }
        if errorCode({ try held.window?.setWord(5, 0, 99) }) != .notInherited { return 2 }
        if held.mirror?.isTranslated(3) == true || held.window?.isEstablished == true { return 3 }
        held.mirror?.close()
        held.window = nil
        held.mirror = nil
        // A space of its own works, and its waits see its own threads only.
        guard let own = try? AddressSpace(), let memory = try? own.map(.pool, pages: 4),
          let device = try? SecondaryMMU(memory)
        else { return 4 }
        guard (try? device.setWord(1, 0, 7)) != nil, (try? memory.protect(1..<2)) != nil, !device.isTranslated(1),
          (try? device.word(1)) == 7
        else { return 5 }
        return 0
      }
      check(status, is: 0)
      mayLeave.value = 1
      try reader.join()
      try check(held.mirror?.word(3), is: 30)
      try check(held.window?.word(5), is: 50)
      try held.mirror?.setWord(9, 0, 90)
      let set = try tracker.collect()
      check(set.contains(3) && set.contains(5) && set.contains(9), "\(set.runs)")
      try space.close()
    }
  }

  private final class Holder {
    var mirror: SecondaryMMU?
    var window: DirectMapping?
    init(_ mirror: SecondaryMMU, _ window: DirectMapping) {
      self.mirror = mirror
      self.window = window
    }
  }

  @Test(
    "A region that goes waits for whoever is inside, and is told apart from one that is there",
    arguments: Mechanisms.synchronous)
  func teardown(_ mechanism: WriteTracking.Mechanism) throws {
    for round in 0..<30 {
      let space = try AddressSpace.forTests()
      let (region, clone) = try sharedPair(space, pages: 32, mechanism)
      let mirror = try SecondaryMMU(clone)
      let window = try DirectMapping(clone, pages: 24..<28)
      let uses = Shared()
      let users = (0..<2).map { index in
        TestThread {
          var random = SeededRandom(seed: Seed.of(round * 2 + index))
          var last: UInt64 = 0
          while true {
            do {
              let page = Int.random(in: 0..<12, using: &random) * 2 + index
              if random.chance(70) {
                try mirror.setWord(page, 1, last)
                if try mirror.word(page, 1) != last { Issue.record("page \(page) lost \(last)") }
              } else {
                try window.setWord(24 + index, 1, last)
                if try window.word(24 + index, 1) != last { Issue.record("the window lost \(last)") }
              }
            } catch let error as PinError where error.code == .unmapped { return }
            last += 1
            uses.add()
          }
        }
      }
      #expect(spin { uses.value > 20 + round * 3 })
      if round % 3 == 0 { try space.close() } else { try clone.unmap() }
      for user in users { try user.join() }
      if round % 3 == 0 { continue }
      for page in 0..<32 { #expect(try region.word(page) == UInt64(page + 1)) }
      let usage = try space.framePool().usage
      #expect(usage.mappers == 1)
      try region.unmap()
      #expect(try space.framePool().usage == .init(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0))
      try space.close()
    }
  }

  @Test("A user that stays inside keeps the memory until it leaves")
  func stays() throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, .handlerThread)
    let mirror = try SecondaryMMU(clone)
    let mayLeave = Shared()
    let isInside = Shared()
    let user = TestThread {
      try unsafe mirror.withBytes(of: 3, for: .writing) { bytes in
        isInside.value = 1
        if !spin(until: { mayLeave.value == 1 }) { Issue.record("nobody lets it leave") }
        unsafe bytes.storeBytes(of: 9, as: UInt64.self)
      }
    }
    #expect(spin { isInside.value == 1 })
    let unmapper = TestThread { try clone.unmap() }
    yieldForAWhile(milliseconds: 20)
    #expect(!unmapper.hasEnded)
    mayLeave.value = 1
    try user.join()
    try unmapper.join()
    #expect(try region.word(3) == 4)
    #expect(errorCode { _ = try mirror.word(3) } == .unmapped)
    try space.close()
  }
}
