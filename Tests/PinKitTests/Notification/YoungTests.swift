import Synchronization
import Testing

@testable import PinKit

/// Ageing asks whoever uses pages without PinKit's noticing.
@Suite("Young pages") struct YoungTests {
  private func region(_ space: AddressSpace) throws -> Region {
    let region = try space.map(.pool, pages: 16)
    for page in 0..<16 { try region.setWord(page, 0, UInt64(page)) }
    return region
  }

  @Test("N13: a page used through a mirror is young, page by page, until the mark is cleared", arguments: [false, true])
  func mirrors(flush: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try region(space)
    let mirror = try SecondaryMMU(region, pages: 2..<12)
    #expect(try !region.testYoung(0..<16))
    for page in [3, 7] { _ = try mirror.word(page) }
    #expect(try region.testYoung(0..<16) && region.testYoung(3..<4) && region.testYoung(7..<8))
    #expect(try !region.testYoung(4..<7) && !region.testYoung(0..<2) && !region.testYoung(12..<16))
    #expect(try region.clearYoung(0..<5, flush: flush))
    #expect(try !region.testYoung(0..<5) && region.testYoung(5..<16))
    #expect(try !region.clearYoung(0..<5, flush: flush))
    // The translation is still there, and using it marks it again.
    #expect(mirror.isTranslated(3))
    #expect(try !region.testYoung(3..<4), "asking is not using")
    _ = try mirror.word(3)
    #expect(try region.testYoung(3..<4))
    _ = try region.clearYoung(0..<16, flush: flush)
    try mirror.setWord(9, 0, 1)
    #expect(try region.testYoung(9..<10))
    mirror.close()
    #expect(try !region.testYoung(0..<16))
    try space.close()
  }

  @Test(
    "N13: a window is young as a whole; ageing takes nothing away, and no written page is forgotten",
    arguments: [false, true])
  func windows(flush: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try region(space)
    let tracker = try region.trackWrites()
    let window = try DirectMapping(region, pages: 4..<8)
    _ = try tracker.collect()
    try window.setWord(5, 0, 50)
    #expect(try region.testYoung(4..<5) && region.testYoung(7..<16))
    #expect(try !region.testYoung(0..<4) && !region.testYoung(8..<16))
    #expect(try region.clearYoung(0..<16, flush: flush))
    #expect(window.isEstablished)
    #expect(try !region.testYoung(4..<8))
    #expect(try tracker.collect().contains(5))
    try window.setWord(5, 0, 51)
    _ = try region.clearYoung(4..<8, flush: flush)
    try window.setWord(5, 0, 52)
    #expect(try region.testYoung(4..<8))
    #expect(try tracker.collect().contains(5))
    #expect(try region.word(5) == 52)
    try space.close()
  }

  /// A page table of its own, with the one call that is exact.
  private final class Exact: MMUNotifier {
    let marks = Mutex<Set<Int>>([])
    func testYoung(_ pages: Range<Int>, of region: Region) -> Bool { marks.withLock { $0.contains(where: pages.contains) } }
    func clearFlushYoung(_ pages: Range<Int>, of region: Region) -> Bool {
      marks.withLock { marks in
        let before = marks.count
        marks = marks.filter { !pages.contains($0) }
        return marks.count < before
      }
    }
  }

  /// One that is told apart by which call came.
  private final class Lazy: MMUNotifier {
    let calls = Mutex<[String]>([])
    private func note(_ call: String) { calls.withLock { $0.append(call) } }
    func testYoung(_ pages: Range<Int>, of region: Region) -> Bool {
      note("test \(pages)")
      return false
    }
    func clearYoung(_ pages: Range<Int>, of region: Region) -> Bool {
      note("clear \(pages)")
      return false
    }
    func clearFlushYoung(_ pages: Range<Int>, of region: Region) -> Bool {
      note("flush \(pages)")
      return false
    }
  }

  @Test("N13: all are asked, each about its own pages; who is exact only is asked for that; spaces pass it on")
  func subscribers() throws {
    let space = try AddressSpace.forTests()
    let region = try region(space)
    let exact = Exact()
    let lazy = Lazy()
    let subscriptions = [
      try region.subscribe(exact, to: 0..<8), try region.subscribe(lazy, to: 4..<12), try space.subscribe(lazy),
    ]
    exact.marks.withLock { $0 = [2, 5] }
    #expect(try region.testYoung(5..<6))
    #expect(try region.clearYoung(0..<5))
    #expect(exact.marks.withLock { $0 } == [5])
    #expect(try region.clearYoung(4..<16, flush: true))
    #expect(try !region.clearYoung(4..<16, flush: true))
    let calls = lazy.calls.withLock { $0.sorted() }
    #expect(
      calls
        == [
          "test 5..<6", "test 5..<6", "clear 4..<5", "clear 0..<5", "flush 4..<12", "flush 4..<16", "flush 4..<12",
          "flush 4..<16",
        ].sorted())
    for subscription in subscriptions { subscription.remove() }
    #expect(try !region.testYoung(0..<16))
    try space.close()
  }
}
