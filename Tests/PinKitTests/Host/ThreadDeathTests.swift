import CTestSupport
import Glibc
import Logging
import Synchronization
import Testing

@testable import PinKit

/// K3: threads on which no fault waits are not missed in silence either.
@Suite("K3: the death of other threads") struct ThreadDeathTests {
  private static func configuration(_ log: LogCapture, patience: Double = 30) -> AddressSpace.Configuration {
    var configuration = AddressSpace.Configuration()
    configuration.logger = log.logger
    configuration.patience = patience
    configuration.failurePolicy = .failRegion
    return configuration
  }

  @Test("K3: another watchdog comes in the place of one that ended, says so, and does its work")
  func watchdog() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let log = LogCapture()
      let tracked = try Tracked(.handlerThread, configure: { $0 = Self.configuration(log) })
      for round in 1...3 {
        let hasEnded = Atomic<Bool>(false)
        TestHooks.set(.watching) { _ in
          if !hasEnded.exchange(true, ordering: .relaxed) { KernelThread.exitCurrent() }
        }
        while log.texts(.critical).count < round { Kernel.pause(nanoseconds: 100_000) }
        TestHooks.set(.watching, nil)
        check(log.texts(.critical).last!, is: "the watchdog ended unexpectedly; there is a new one")
        // Only a watchdog repairs this and says it.
        check(ct_close_userfaultfds(1, 0), is: 1)
        while log.texts(.error).count < round { Kernel.pause(nanoseconds: 100_000) }
        check(log.texts(.error).last!.contains("its spare took over"), log.texts(.error).last!)
        try tracked.expectExact()
      }
      try tracked.close()
      check(log.texts(.critical).count, is: 3)
    }
  }

  @Test("K3: a tick that ends the watchdog takes no other along")
  func tick() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let log = LogCapture()
      let tracked = try Tracked(.handlerThread, configure: { $0 = Self.configuration(log) })
      let handler = try tracked.space.faultHandler()
      let turns = Shared()
      let hasEnded = Shared()
      handler.everyTick {
        if hasEnded.add() == 1 { KernelThread.exitCurrent() }
        return true
      }
      handler.everyTick {
        _ = turns.add()
        return true
      }
      while log.texts(.critical).isEmpty { Kernel.pause(nanoseconds: 100_000) }
      let before = turns.value
      while turns.value < before + 2 { handler.alarm.signal() }
      try tracked.close()
    }
  }

  @Test("K3: another sweep comes in the place of one that ended, and later snapshots are swept")
  func sweepEnds() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let log = LogCapture()
      let space = try AddressSpace(configuration: Self.configuration(log))
      let region = try space.map(pages: 64)
      try region.fill(with: 5)
      let hasEnded = Atomic<Bool>(false)
      TestHooks.set(.sweeping) { _ in
        if !hasEnded.exchange(true, ordering: .relaxed) { KernelThread.exitCurrent() }
      }
      let first = try region.snapshot(SnapshotOptions(sweep: true))
      while log.texts(.critical).isEmpty { Kernel.pause(nanoseconds: 100_000) }
      TestHooks.set(.sweeping, nil)
      check(log.texts(.critical)[0].contains("ended unexpectedly; there is a new one"), log.texts(.critical)[0])
      region.poke(6, 3)
      try check(first.read(3)[0], is: 5)
      let second = try region.snapshot(SnapshotOptions(sweep: true))
      while second.capturedBytes < 64 * region.pageSize { Kernel.pause(nanoseconds: 100_000) }
      region.poke(7, 3)
      try check(second.read(3)[0], is: 6)
      try check(first.read(3)[0], is: 5)
      first.close()
      second.close()
      try space.close()
      check(log.texts(.critical).count, is: 1)
    }
  }

  @Test("K3: a sweep that is stuck is said, once")
  func sweepIsStuck() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let log = LogCapture()
      let space = try AddressSpace(configuration: Self.configuration(log, patience: 0.5))
      let region = try space.map(pages: 64)
      try region.fill(with: 5)
      let goesOn = Atomic<Bool>(false)
      TestHooks.set(.sweeping) { _ in while !goesOn.load(ordering: .acquiring) { Kernel.pause(nanoseconds: 100_000) } }
      let snapshot = try region.snapshot(SnapshotOptions(sweep: true))
      while log.texts(.critical).isEmpty { Kernel.pause(nanoseconds: 100_000) }
      check(log.texts(.critical)[0].contains("has been stuck for 0.5 s"), log.texts(.critical)[0])
      // It is not asked for anything by who writes.
      region.poke(6, 3)
      try check(snapshot.read(3)[0], is: 5)
      goesOn.store(true, ordering: .releasing)
      while snapshot.capturedBytes < 64 * region.pageSize { Kernel.pause(nanoseconds: 100_000) }
      check(log.texts(.critical).count, is: 1)
      snapshot.close()
      try space.close()
    }
  }

  @Test("K3: the thread that takes pages out of a mapping ends before it has: another one does, and the call returns")
  func dropsGoOn() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let space = try AddressSpace(configuration: Self.configuration(LogCapture()))
      let region = try space.map(.pool, pages: 64)
      try region.setSealer(RecordingSealer())
      try region.fill(with: 5)
      for _ in 0..<20 {
        let turns = Shared()
        TestHooks.set(.unmapping) { _ in if turns.add() == 1 { KernelThread.exitCurrent() } }
        try region.seal(0..<64)
        TestHooks.set(.unmapping, nil)
        check(turns.value >= 2, "no thread ended")
        for page in 0..<64 { check(region.peek(page), is: 5) }
      }
      try space.close()
    }
  }
}
