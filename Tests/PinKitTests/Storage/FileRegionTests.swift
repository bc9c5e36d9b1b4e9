import CTestSupport
import Testing

@testable import PinKit

@Suite("Regions over a store") struct FileRegionTests {
  @Test("Pages come in when they are touched, by every way, and the last one ends in zeros")
  func fills() throws {
    let space = try AddressSpace()
    defer { try? space.close() }
    let store = UnrulyStore(pages: 8, bytes: 7 * 4096 + 100)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    #expect(store.calls.isEmpty, "nothing is read before it is needed")
    #expect(region.peek(3) == 4)
    #expect(store.calls == [.read(3..<4)])
    #expect(try region.byte(5, at: 4095) == 6)
    #expect(region.peek(7, at: 99) == 8)
    #expect(region.peek(7, at: 100) == 0)
    region.poke(99, 0)
    #expect(region.peek(0) == 99 && region.peek(0, at: 1) == 1)
    #expect(
      try (0..<8).map { try region.filePageState($0).isPresent } == [true, false, false, true, false, true, false, true])
    #expect(space.statistics.suppliedPages == 4)
  }

  @Test("A store that must be waited for does not stop faults on other pages")
  func slowStore() throws {
    let space = try AddressSpace()
    let gate = Shared()
    let store = UnrulyStore(pages: 64)
    store.set {
      $0.isQuick = false
      $0.reading = { pages throws(PinError) in
        while pages.lowerBound < 16, gate.value == 0 { Kernel.pause(nanoseconds: 50_000) }
      }
    }
    let region = try space.map(.file(store, fillAround: .exact), pages: 64)
    let reached = Shared()
    let threads = (0..<16).map { page in
      TestThread { reached.add(region.peek(page) == UInt8(page + 1) ? 1 : 1000) }
    }
    #expect(spin { store.calls.count >= 16 })
    // All sixteen are stuck inside the store.
    for page in 16..<64 { #expect(region.peek(page) == UInt8(page + 1)) }
    gate.value = 1
    for thread in threads { try thread.join() }
    #expect(reached.value == 16)
    try space.close()
  }

  @Test("Writers are asked for, pages written back, and what was flushed is durable") func flushes() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 32)
    let region = try space.map(.file(store), pages: 32)
    for page in [2, 3, 9] { region.poke(200, page) }
    #expect(try region.filePageState(2).isDirty)
    #expect(try region.frameState(2).isDirty)
    store.forgetCalls()
    try region.flush()
    #expect(store.written.sorted() == [2, 3, 9])
    #expect(store.calls.last == .flush)
    #expect(store.durableByte(2) == 200 && store.durableByte(9) == 200 && store.durableByte(4) == 5)
    #expect(try (0..<32).allSatisfy { try !region.filePageState($0).isDirty })
    store.forgetCalls()
    try region.flush()
    #expect(store.written.isEmpty, "nothing has changed")
    // Clean pages trap again.
    region.poke(201, 3)
    #expect(try region.filePageState(3).isDirty)
    #expect(store.calls.contains(.makeWritable(3..<4)))
    try region.unmap()
    #expect(store.durableByte(3) == 201, "unmapping writes what is left")
    try space.close()
  }

  @Test("Clones, snapshots and trackers of a store's pages are as of any others") func features() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 16)
    let region = try space.map(.file(store, fillAround: .exact), pages: 16)
    let tracker = try region.trackWrites()
    region.poke(50, 1)
    _ = region.peek(2)
    #expect(try tracker.collect().runs == [1..<2])
    let snapshot = try region.snapshot()
    region.poke(51, 1)
    region.poke(52, 8)
    #expect(try snapshot.read(1)[0] == 50)
    #expect(try snapshot.read(8)[0] == 9)
    #expect(try snapshot.read(15)[0] == 16, "a page that is not there is as it is in the store")
    #expect(try tracker.collect().runs == [1..<2, 8..<9])
    let clone = try region.clone()
    region.poke(60, 8)
    clone.poke(61, 1)
    try region.flush()
    #expect(store.durableByte(8) == 60 && store.durableByte(1) == 51)
    #expect(clone.peek(8) == 52 && clone.peek(1) == 61 && clone.peek(15) == 16)
    #expect(region.peek(1) == 51)
    #expect(try snapshot.read(8)[0] == 9)
    snapshot.close()
    #expect(errorCode { try clone.flush() } == .unsupported)
    try space.close()
  }

  @Test("P5: Clean pages that nobody holds are dropped, and come back; all others stay") func reclaims() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 64)
    let region = try space.map(.file(store, fillAround: .exact), pages: 64)
    for page in 0..<64 { _ = region.peek(page) }
    region.poke(99, 5)
    let held = try region.lookUp(6)
    let clone = try region.clone()
    #expect(try region.reclaim(0..<64) == 0, "the clone has them all")
    try clone.unmap()
    let before = try space.framePool().usage.residentBytes
    #expect(try region.reclaim(0..<64) == 62)
    #expect(try space.framePool().usage.residentBytes <= before - 62 * 4096)
    #expect(try (0..<64).filter { try region.filePageState($0).isPresent } == [5, 6])
    #expect(region.peek(5) == 99 && region.peek(6) == 7 && region.peek(7) == 8)
    _ = consume held
    try region.flush()
    #expect(try region.reclaim(0..<64) == 3)
    #expect(region.peek(5) == 99, "from the store")
    region.poke(98, 5)
    #expect(region.peek(5) == 98)
    try space.close()
    #expect(store.durableByte(5) == 98)
  }

  @Test("P1, P3: A store that writes back refuses pins that last, and what is pinned for writing is never clean") func pins()
    throws
  {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    #expect(errorCode { _ = try region.pin(2..<3, [.write, .longTerm]) } == .needsDirtyTracking)
    #expect(errorCode { _ = try FixedBuffers(region, [2..<3]) } == .needsDirtyTracking)
    #expect(try region.needsDirtyTracking)
    let reading = try region.pin(5..<6, .longTerm)
    #expect(unsafe reading.withUnsafeBytes { unsafe $0[0] } == 6, "a pin brings its pages in")
    #expect(try region.reclaim(0..<8) == 0)
    reading.unpin()
    let pin = try region.pin(2..<3, .write)
    try unsafe pin.withUnsafeMutableBytes { unsafe $0[0] = 40 }
    try region.flush()
    #expect(store.durableByte(2) == 40, "a copy of the moment")
    #expect(try region.filePageState(2).isDirty)
    try unsafe pin.withUnsafeMutableBytes { unsafe $0[0] = 41 }
    #expect(errorCode { try region.unmap() } == .pinned)
    #expect(try region.reclaim(0..<8) == 1, "all that is clean and not pinned")
    pin.unpin()
    #expect(try region.filePageState(2).isDirty)
    try region.flush()
    #expect(store.durableByte(2) == 41)
    #expect(try !region.filePageState(2).isDirty)
    try space.close()
  }
}
