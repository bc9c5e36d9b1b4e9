import CTestSupport
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
}
