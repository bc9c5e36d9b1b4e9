import Glibc
import Testing

@testable import PinKit

/// What W1 forbids, held still by hooks. They are the process's: these tests run one after the other, and look only at pages
/// that no other suite has.
@Suite("Wrprotect lock", .serialized) struct WrprotectOrderTests {
  private static let pageCount = 6000
  /// Written, so collected and protected again.
  private static let first = 5101
  private static let second = 5401

  private func with(
    _ mechanism: WriteTracking.Mechanism, _ body: (Region, WriteTracker) throws -> Void
  ) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: Self.pageCount)
    let tracker = try region.trackWrites(mechanism)
    defer {
      for point in [TestHooks.Point.exclusiveHeld, .protecting, .deciding, .unprotected] { TestHooks.set(point, nil) }
    }
    try body(region, tracker)
    try space.close()
  }

  @Test(
    "W1: no fault handler decides while pages are being protected, also on a page that already is",
    arguments: Mechanisms.synchronous)
  func noDecisionInFlight(_ mechanism: WriteTracking.Mechanism) throws {
    try with(mechanism) { region, tracker in
      for page in [Self.first, Self.second] { try region.store(1, toByteOffset: page * 4096) }
      // The collection stops between its two runs: the first page is protected again, the second is not yet.
      let decisions = Shared()
      let held = HeldThreads(at: .protecting, Self.first...Self.first)
      TestHooks.set(.deciding) { page in
        if page == Self.first || page == Self.second { decisions.add() }
      }
      let collector = TestThread {
        let runs = try tracker.collect().runs
        #expect(runs == [Self.first..<Self.first + 1, Self.second..<Self.second + 1])
      }
      defer { held.letGo() }
      try #require(held.first())
      let writer = TestThread { try region.store(2, toByteOffset: Self.first * 4096) }
      // The writer sleeps in its fault, or in its own handler. Without the lock it would have decided, or be through, by now.
      let wasHeldUp = spin(forAtMost: 5) { decisions.value > 0 || writer.hasEnded || writer.isAsleep }
      yieldForAWhile(milliseconds: 20)
      #expect(wasHeldUp)
      #expect(decisions.value == 0, "a fault was decided on while protection was in flight")
      #expect(!writer.hasEnded)
      held.letGo()
      try collector.join()
      try writer.join()
      #expect(decisions.value == 1)
      #expect(try tracker.collect().runs == [Self.first..<Self.first + 1])
    }
  }

  @Test("W1/W5: a collection waits until a page that was let go is on record", arguments: Mechanisms.synchronous)
  func noCollectionBetweenOpeningAndRecording(_ mechanism: WriteTracking.Mechanism) throws {
    try with(mechanism) { region, tracker in
      let held = HeldThreads(at: .unprotected, Self.first...Self.first)
      let writer = TestThread { try region.store(3, toByteOffset: Self.first * 4096) }
      defer { held.letGo() }
      try #require(held.first())
      // A reader's writer is awake: its write is complete, and nothing but the lock keeps a collection from missing it.
      if mechanism == .handlerThread { try #require(spin { writer.hasEnded }) }
      let collected = Shared(-1)
      let collector = TestThread { collected.value = try tracker.collect().contains(Self.first) ? 1 : 0 }
      _ = spin(forAtMost: 5) { collector.isAsleep || collector.hasEnded }
      yieldForAWhile(milliseconds: 20)
      #expect(!collector.hasEnded, "the collection did not wait for the fault handler")
      held.letGo()
      try collector.join()
      try writer.join()
      #expect(collected.value == 1, "the write is in no set")
    }
  }

  @Test("W1/W5: no write is lost where fault handlers and collections are slow", arguments: Mechanisms.synchronous)
  func slowedDown(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let log = ChangeLog(pageCount: 96)
    let findings = Findings()
    let region = try space.map(.anonymous(hugePages: .never), pages: 96)
    let hesitate: TestHooks.Hook = { page in if page & 3 == 0 { sched_yield() } }
    for point in [TestHooks.Point.protecting, .unprotected, .exclusiveHeld] { TestHooks.set(point, hesitate) }
    defer { for point in [TestHooks.Point.protecting, .unprotected, .exclusiveHeld] { TestHooks.set(point, nil) } }
    var view = try ShadowView(region, mechanism, .init(), log: log, slots: [0], findings: findings)
    for round in 0..<20 where findings.isEmpty {
      let threads = (0..<3).map { index in
        TestThread {
          for step in 1...300 {
            let page = (step * 7 + index * 31) % 32 * 3 + index
            try log.change(page) { try region.store(UInt64(round * 1000 + step), toByteOffset: page * 4096) }
          }
        }
      }
      while threads.contains(where: { !$0.hasEnded }) { try view.collect() }
      for thread in threads { try thread.join() }
      try view.compare("round \(round)")
    }
    #expect(findings.all == [])
    try view.stop()
    try space.close()
  }

  @Test("closing a space lets threads that wait in faults go on first", arguments: Mechanisms.synchronous)
  func closeWhileFaultsWait(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: Self.pageCount)
    let tracker = try region.trackWrites(mechanism)
    let waiting = Shared()
    let mayGoOn = Shared()
    defer { TestHooks.set(.deciding, nil) }
    TestHooks.set(.deciding) { page in
      guard page == Self.first || page == Self.second else { return }
      waiting.add()
      _ = spin { mayGoOn.value == 1 }
    }
    let writers = [Self.first, Self.second].map { page in
      TestThread { try region.store(5, toByteOffset: page * 4096) }
    }
    defer { mayGoOn.value = 1 }
    try #require(spin { waiting.value >= 1 })
    let closer = TestThread { try space.close() }
    _ = spin(forAtMost: 5) { closer.isAsleep || closer.hasEnded }
    #expect(!closer.hasEnded)
    mayGoOn.value = 1
    // A writer that got in before the gate closed completes; one that came later is told so.
    for writer in writers {
      do { try writer.join() } catch let error as PinError { #expect(error.code == .unmapped) }
    }
    try closer.join()
    let error = #expect(throws: PinError.self) { try tracker.collect() }
    #expect(error?.code == .unmapped)
    #expect(throws: PinError.self) { try region.store(1, toByteOffset: 0) }
  }
}
