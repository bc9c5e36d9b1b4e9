import CTestSupport
import Synchronization
import Testing

@testable import PinKit

@Suite("Pages of a store that are not durable yet") struct UndurablePageTests {
  @Test("A page that the store has been given, and has not made durable, is not reclaimed") func reclaim() throws {
    let space = try AddressSpace.forTests()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    for page in 3..<5 { region.poke(9, page) }
    _ = region.peek(6)
    let moment = Shared()
    store.set {
      $0.flushing = {
        // The region's end flushes, too.
        if moment.value == 0 { moment.value = 1 }
        while moment.value == 1 { Kernel.pause(nanoseconds: 100_000) }
      }
    }
    let flushing = TestThread { try region.flush() }
    while moment.value == 0 { Kernel.pause(nanoseconds: 100_000) }
    #expect(store.written == [3, 4])
    #expect(try region.reclaim(0..<8) == 1, "nobody knows yet whether the store has pages 3 and 4")
    moment.value = 2
    try flushing.join()
    #expect(try region.reclaim(0..<8) == 2)
    #expect(try region.byte(3) == 9 && store.durableByte(4) == 9)
    try region.unmap()
    try space.close()
  }

  @Test("A page that turns out not to be durable while it is looked at is not reclaimed")
  func failsMeanwhile() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      let store = UnrulyStore(pages: 8)
      let region = try space.map(.file(store, fillAround: .exact), pages: 8)
      region.poke(1, 2)
      _ = region.peek(6)
      try region.flush()
      let gate = try StoreGate()
      store.set {
        $0.flushing = { () throws(PinError) in
          gate.wait()
          throw .broken
        }
      }
      let flushing = Mutex<TestThread?>(nil)
      let findings = Findings()
      let looks = Shared()
      TestHooks.set(.reclaiming) { page in
        if page == 6, flushing.withLock({ $0 == nil }) {
          // Page 2 was found clean, as far as can be seen without a lock. It is written now, and on its way.
          region.poke(2, 2)
          let thread = TestThread { check(errorCode { try region.flush() }, is: .inputOutput) }
          flushing.withLock { $0 = thread }
          if !spin(until: { gate.waiting == 1 }) { findings.note("nobody flushes") }
        } else if page == 2, flushing.withLock({ $0 != nil }) {
          // Under the lock: the store has failed when the other mark is looked at.
          looks.add()
          do { try gate.open() } catch { findings.note("\(error)") }
          if !spin(until: { flushing.withLock { $0?.hasEnded } == true }) { findings.note("the flush does not end") }
        }
      }
      try check(region.reclaim(0..<8), is: 1, "page 6 alone can go")
      TestHooks.set(.reclaiming, nil)
      if looks.value == 0 { try gate.open() }
      try flushing.withLock { $0 }?.join()
      check(findings.all, is: [])
      let file = region.attachments.find(FilePages.self)!
      check(!file.isClean(2) && store.durableByte(2) == 1, "\(looks.value) looks")
      store.set { $0.flushing = {} }
      try region.flush()
      check(file.isClean(2) && store.durableByte(2) == 2, "the byte is lost")
      try space.close()
    }
  }
}
