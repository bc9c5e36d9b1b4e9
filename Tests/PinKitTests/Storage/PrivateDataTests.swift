import Synchronization
import Testing

@testable import PinKit

@Suite("Private data of frames") struct PrivateDataTests {
  private final class Buffers: Sendable {}

  @Test("P5: A reference that appears between the check and the removal keeps the data: the race of try_to_free_buffers")
  func raceOfSeed() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 5000)
    let region = try space.map(.file(store, fillAround: .exact), pages: 5000)
    let page = 4321
    let buffers = Buffers()
    try region.attach(buffers, to: page)
    let late = Mutex<[HeldReference]>([])
    TestHooks.set(.releasing) { checked in
      // All has been checked: nobody else had the frame.
      if checked == page, let reference = try? HeldReference(region.lookUp(page)) { late.withLock { $0.append(reference) } }
    }
    #expect(errorCode { _ = try region.tryRelease(page) } == .busy)
    TestHooks.set(.releasing, nil)
    #expect(region.privateData(of: page) === buffers, "nothing has changed")
    late.withLock { $0 = [] }
    #expect(try region.tryRelease(page) === buffers)
    #expect(region.privateData(of: page) == nil)
    #expect(try region.tryRelease(page) == nil)
    try space.close()
  }

  @Test("P5: Dirty, locked and pinned frames keep their data, and frames with data are not reclaimed") func refusals() throws
  {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    let buffers = Buffers()
    try region.attach(buffers, to: 3)
    #expect(errorCode { try region.attach(Buffers(), to: 3) } == .alreadyExists)
    #expect(try region.reclaim(0..<8) == 0)
    region.poke(9, 3)
    #expect(errorCode { _ = try region.tryRelease(3) } == .busy)
    try region.flush()
    let reference = try region.lookUp(3)
    #expect(errorCode { _ = try region.tryRelease(3) } == .busy)
    try reference.withPageLock { #expect(errorCode { _ = try region.tryRelease(3) } == .busy) }
    _ = consume reference
    #expect(try region.tryRelease(3) === buffers)
    #expect(try region.reclaim(0..<8) == 1)
    try space.close()
  }

  @Test("P5: Lookups against releases: data goes only while nobody has the frame") func race() throws {
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: 4)
    let findings = Findings()
    let stop = Shared()
    let looker = TestThread {
      while stop.value == 0 {
        let reference = try region.lookUp(1)
        let before = region.privateData(of: 1)
        if reference.state.counts.isFrozen { findings.note("a frame was frozen while somebody had it") }
        let after = region.privateData(of: 1)
        if before != nil, after == nil { findings.note("the data went while somebody had the frame") }
        _ = consume reference
      }
    }
    var released = 0
    for _ in 0..<100_000 {
      if region.privateData(of: 1) == nil { try region.attach(Buffers(), to: 1) }
      if (try? region.tryRelease(1)) != nil { released += 1 }
    }
    stop.value = 1
    try looker.join()
    #expect(findings.all == [])
    #expect(released > 0)
    try space.close()
  }
}
