import CTestSupport
import Synchronization
import Testing

@testable import PinKit

@Suite("Pins for reading", .serialized) struct ReadPinTests {
  private func family(_ space: AddressSpace, _ mechanism: WriteTracking.Mechanism, pages: Int = 8) throws -> (
    template: Region, clone: Region
  ) {
    let template = try space.map(.pool, pages: pages)
    try template.fill(with: 1)
    return (template, try template.clone(mechanism: mechanism))
  }

  @Test(
    "P10: a pin for reading that breaks sharing is no write, and what is written later is one",
    arguments: Mechanisms.synchronous)
  func unshares(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (template, clone) = try family(space, mechanism)
    let told = Mutex<[Int]>([])
    let tracker = try clone.trackWrites(onFirstWrite: { write in told.withLock { $0.append(write.page) } })
    let older = try clone.snapshot()
    let pin = try clone.pin(2..<5, .unshare)
    #expect(pin.pages == 2..<5)
    for page in 2..<5 {
      #expect(try pin.frameState(of: page)?.frame == clone.frameState(page).frame)
      #expect(try clone.frameState(page).frame != template.frameState(page).frame)
    }
    #expect(try tracker.collect().isEmpty)
    #expect(told.withLock { $0 } == [])
    #expect((0..<8).allSatisfy { clone.peek($0) == 1 && !clone.table[$0].contains(.open) })
    // Now a write is one, and the pin sees it (W4).
    clone.poke(7, 3)
    #expect(told.withLock { $0 } == [3])
    #expect(try tracker.collect().runs == [3..<4])
    let seen = unsafe pin.withUnsafeBytes { unsafe $0[4096] }
    #expect(seen == 7 && template.peek(3) == 1)
    template.poke(9, 2)
    let untouched = unsafe pin.withUnsafeBytes { unsafe $0[0] }
    #expect(untouched == 1 && clone.peek(2) == 1)
    let newer = try clone.snapshot()
    #expect(try newer.changes(since: older).runs == [3..<4])
    pin.unpin()
    for page in 2..<5 { clone.poke(8, page) }
    #expect(try tracker.collect().runs == [2..<5])
    var bytes = [UInt8](repeating: 0, count: 4096)
    try unsafe bytes.withUnsafeMutableBytes { try unsafe older.copy(3..<4, into: $0) }
    #expect(bytes[0] == 1)
    for snapshot in [older, newer] { snapshot.close() }
    try tracker.stop()
    for region in [clone, template] { try region.unmap() }
    try space.close()
  }

  @Test("P10: where the pool does not map what a page is compared with, it is no write either: the pin comes again")
  func notComparable() throws {
    let space = try AddressSpace.forTests()
    let (template, clone) = try family(space, .handlerThread)
    let told = Mutex<[Int]>([])
    let tracker = try clone.trackWrites(onFirstWrite: { write in told.withLock { $0.append(write.page) } })
    let protection = clone.attachments.find(RegionProtection.self)!
    let resolution = Kernel.withSignalsBlocked {
      unsafe protection.domain.pointee.lock.withShared { hold in
        unsafe FaultPath.unshare(page: 2, waits: true, in: protection.domain.pointee, holding: hold)
      }
    }
    #expect(resolution == .retry)
    #expect(!clone.table[2].contains(.open) && told.withLock { $0 } == [])
    let pin = try clone.pin(2..<3, .unshare)
    #expect(try tracker.collect().isEmpty)
    pin.unpin()
    try tracker.stop()
    for region in [clone, template] { try region.unmap() }
    try space.close()
  }

  @Test("P10: it takes no right to write", arguments: Mechanisms.synchronous)
  func readOnly(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (template, clone) = try family(space, mechanism)
    try clone.protect(0..<8)
    let pin = try clone.pin(2..<4, [.unshare, .longTerm])
    #expect(pin.pages == 2..<4)
    #expect(try clone.frameState(2).frame != template.frameState(2).frame)
    #expect(errorCode { try clone.store(UInt8(1), toByteOffset: 2 * 4096) } == .accessDenied)
    let tracker = try clone.trackWrites()
    try clone.protect(0..<8, to: .readWrite)
    #expect(try tracker.collect().isEmpty)
    clone.poke(5, 2)
    #expect(try tracker.collect().runs == [2..<3])
    let seen = unsafe pin.withUnsafeBytes { unsafe $0[0] }
    #expect(seen == 5 && template.peek(2) == 1)
    try clone.protect(6..<7, to: .none)
    #expect(errorCode { _ = try clone.pin(6..<7, .unshare) } == .accessDenied)
    pin.unpin()
    try tracker.stop()
    for region in [clone, template] { try region.unmap() }
    try space.close()
  }

  @Test("P10/W5: a write beside it is reported, whichever comes first", arguments: Mechanisms.synchronous)
  func besideWriters(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (template, clone) = try family(space, mechanism)
    for round in 0..<100 {
      let child = try clone.clone()
      let tracker = try child.trackWrites()
      let go = Shared()
      let writer = TestThread {
        ct_unblock_signals()
        while go.value == 0 {}
        for page in 0..<8 where page % 2 == 0 { child.poke(UInt8(truncatingIfNeeded: 2 + round), page, at: 8 * page) }
      }
      go.value = 1
      let pin = try child.pin(0..<8, .unshare)
      let early = try tracker.collect()
      try writer.join()
      #expect(try early.union(tracker.collect()).runs == [0..<1, 2..<3, 4..<5, 6..<7])
      for page in 0..<8 where page % 2 == 0 {
        let seen = unsafe pin.withUnsafeBytes { unsafe $0[page * 4096 + 8 * page] }
        #expect(seen == UInt8(truncatingIfNeeded: 2 + round))
      }
      #expect((1..<8).allSatisfy { clone.peek($0) == 1 })
      pin.unpin()
      try tracker.stop()
      try child.unmap()
    }
    for region in [clone, template] { try region.unmap() }
    try space.close()
  }

  @Test("P10/W5: a write between the mapping of the new frame and its protection is reported, and survives")
  func inTheWindow() throws {
    let space = try AddressSpace.forTests()
    for mechanism in Mechanisms.synchronous {
      let (template, clone) = try family(space, mechanism, pages: 2_800)
      let tracker = try clone.trackWrites()
      let held = HeldThreads(at: .mapped, 2_777..<2_778)
      let pinning = TestThread { try clone.pin(2_777..<2_778, .unshare).unpin() }
      #expect(held.first())
      let writer = TestThread {
        ct_unblock_signals()
        clone.poke(66, 2_777, at: 100)
      }
      // By handler threads it goes through at once; elsewhere it waits.
      if mechanism == .handlerThread { #expect(spin { writer.hasEnded }) } else { yieldForAWhile() }
      TestHooks.set(.mapped, nil)
      held.letGo()
      try pinning.join()
      try writer.join()
      #expect(clone.peek(2_777, at: 100) == 66 && template.peek(2_777, at: 100) == 0)
      #expect(try tracker.collect().runs == [2_777..<2_778])
      #expect(try tracker.collect().isEmpty)
      try tracker.stop()
      for region in [clone, template] { try region.unmap() }
    }
    try space.close()
  }
}
