import CTestSupport
import SystemPackage
import Testing

@testable import PinKit

/// Ending a region, a tracker or a space while others are in the middle of something.
@Suite("Ending beside others") struct TeardownRaceTests {
  /// Stops the first `count` threads that take a wrprotect lock exclusively, each until it is let go.
  private final class Turnstile: Sendable {
    private let arrivals = Shared()
    private let released = Shared()
    init(_ count: Int) {
      TestHooks.set(.exclusiveHeld) { [self] _ in
        let turn = arrivals.add()
        if turn <= count { while released.value < turn { Kernel.relax() } }
      }
    }
    var arrived: Int { arrivals.value }
    func release() { released.add() }
  }

  @Test("close() waits for an unmap() under way, whose accesses still need their faults served") func closeBesideUnmap()
    async
  {
    await #expect(processExitsWith: .success) {
      ct_deadline(30)
      let tracked = try Tracked(.handlerThread)
      let isInside = Shared()
      let mayWrite = Shared()
      let writer = TestThread {
        try unsafe tracked.region.withUnsafeMutableBytes { bytes in
          isInside.value = 1
          while mayWrite.value == 0 { Kernel.relax() }
          for page in 0..<64 { unsafe bytes[page * 4096] = 2 }
        }
      }
      while isInside.value == 0 { Kernel.relax() }
      let unmapper = TestThread { try tracked.region.unmap() }
      while !tracked.region.gate.isClosed { Kernel.relax() }
      let closer = TestThread { try tracked.space.close() }
      let begun = Kernel.now()
      while !closer.hasEnded, Kernel.now() - begun < 300_000_000 { Kernel.pause(nanoseconds: 1_000_000) }
      check(!closer.hasEnded, "closed with a region still mapped")
      mayWrite.value = 1
      for thread in [writer, unmapper, closer] { try thread.join() }
    }
  }

  @Test("stop() beside unmap() ends a region once, and leaves the next one alone") func stopBesideUnmap() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(30)
      let tracked = try Tracked(.handlerThread)
      let handler = try tracked.space.faultHandler()
      let second = try tracked.space.map(.anonymous(hugePages: .never), pages: 8)
      let turnstile = Turnstile(2)
      let unmapper = TestThread { try tracked.region.unmap() }
      while turnstile.arrived < 1 { Kernel.relax() }
      let stopper = TestThread { try tracked.tracker.stop() }
      while !stopper.isAsleep { Kernel.relax() }
      turnstile.release()
      // The second to come is whichever of the two still ends something.
      while turnstile.arrived < 2 || !handler.protections.isEmpty || !(unmapper.isAsleep || stopper.hasEnded) {
        Kernel.relax()
      }
      let tracker = try second.trackWrites(.handlerThread)
      turnstile.release()
      for thread in [unmapper, stopper] { try thread.join() }
      TestHooks.set(.exclusiveHeld, nil)
      try second.fill(with: 1)
      try check(tracker.collect().count, is: 8)
      try tracked.space.close()
    }
  }

  @Test("collect() beside unmap() protects nothing any more") func collectBesideUnmap() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(30)
      let memory = try ForeignMemory(.adoptedAnonymous, pages: 4)
      let space = try AddressSpace.forTests()
      let region = try space.adopt(memory.range)
      let tracker = try region.trackWrites(.mprotect)
      try region.discard(0..<1)
      let turnstile = Turnstile(1)
      let unmapper = TestThread { try region.unmap() }
      while turnstile.arrived < 1 { Kernel.relax() }
      let collector = TestThread { _ = try tracker.collect() }
      while !collector.isAsleep, !collector.hasEnded { Kernel.relax() }
      turnstile.release()
      try unmapper.join()
      do { try collector.join() } catch let error as PinError { check(error.code, is: .unmapped) }
      for page in 0..<4 { ct_store(UInt64(memory.range.start) + UInt64(page * 4096), 1) }
      try space.close()
      memory.unmap()
    }
  }

  @Test("A fault that waits to be tried again is not taken for one of the next region") func parkedFault() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(30)
      let first = try Tracked(.handlerThread, configure: { $0.readerCount = 1 })
      let isStopped = Shared()
      let mayGoOn = Shared()
      let rounds = Shared()
      TestHooks.set(.readerIdle) { _ in
        guard first.space.counters[.retries] > 0 else { return }
        isStopped.value = 1
        while mayGoOn.value == 0 { Kernel.relax() }
        rounds.add()
      }
      Injection.arm(.unprotect, .resourceTemporarilyUnavailable, times: 1_000_000)
      let writer = HostThread { ct_store(first.address(of: 40), 2) }
      while isStopped.value == 0 { Kernel.relax() }
      Injection.disarm()
      try first.tracker.stop()
      writer.join()
      let second = try first.space.map(.anonymous(hugePages: .never), pages: 64)
      try second.fill(with: 1)
      let tracker = try second.trackWrites(.handlerThread)
      try check(tracker.collect().isEmpty, "written before")
      mayGoOn.value = 1
      // In a round the reader visits what is ready and tries again what waits.
      while rounds.value < 3, first.space.counters[.openedPages] == 0 {
        try second.store(UInt8(2), toByteOffset: 0)
        if rounds.value > 1 { break }
      }
      try check(tracker.collect().runs.filter { $0 != 0..<1 }.isEmpty, "written by nobody")
      try first.space.close()
    }
  }

  @Test("Memory that was adopted is writable again when it is given back") func adoptedRights() async {
    await #expect(processExitsWith: .success) {
      for mechanism: WriteTracking.Mechanism? in [nil, .handlerThread, .mprotect] {
        let memory = try ForeignMemory(.adoptedAnonymous, pages: 4)
        let space = try AddressSpace.forTests()
        let region = try space.adopt(memory.range)
        let tracker = try mechanism.map { try region.trackWrites($0) }
        try region.protect(1..<2, to: .readOnly)
        try region.protect(2..<3, to: .none)
        try region.unmap()
        for page in 0..<4 { ct_store(UInt64(memory.range.start) + UInt64(page * 4096), 1) }
        _ = tracker
        try space.close()
        memory.unmap()
      }
    }
  }
}
