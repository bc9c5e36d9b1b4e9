import CTestSupport
import SystemPackage
import Testing

@testable import PinKit

private let hasScan = Capabilities.attempt { () throws(PinError) in
  let page = try Mapping(count: Memory.pageSize)
  try PageMap().scan(page.range, PageMap.Query(required: .written)) { _, _ in }
}.didWork

@Suite("Protecting much memory by several threads", .enabled(if: hasScan, "needs PAGEMAP_SCAN"))
struct ParallelProtectionTests {
  /// 512 MiB.
  private static let pages = 131_072
  /// What one thread takes at a time, in pages.
  private static let piece = 8192

  /// How many pages the processor may write, as the kernel has it.
  private static func unprotected(_ region: Region) throws -> Int {
    var count = 0
    let query = PageMap.Query(required: .written, anyOf: .present, returned: .written)
    try PageMap().scan(region.addresses, query) { range, _ in count += range.count / 4096 }
    return count
  }

  @Test("W1, W5, K1: a collection returns when every piece is protected, whichever thread has it") func joins() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(900)
      let space = try AddressSpace.forTests()
      let region = try space.map(.anonymous(hugePages: .never), pages: Self.pages)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(.handlerThread, options: .init(faultAround: .fixed(64)))
      try region.fill(with: 2)
      try check(Self.unprotected(region), is: Self.pages)
      let collecting = Shared(-1)
      let pieces = Shared()
      let held = Shared()
      let mayGoOn = Shared()
      TestHooks.set(.protectingPiece) { _ in
        guard Int(Kernel.threadID) == collecting.value else {
          held.add()
          _ = spin(forAtMost: 600) { mayGoOn.value == 1 }
          return
        }
        // The first looks slow enough for there to be helpers, and the next waits until one of them has a piece.
        if pieces.add() == 1 { return Kernel.pause(nanoseconds: 2_000_000) }
        _ = spin(forAtMost: 120) { held.value > 0 }
      }
      let count = Shared()
      let collector = TestThread {
        collecting.value = Int(Kernel.threadID)
        count.value = try tracker.collect().count
      }
      check(spin(forAtMost: 300) { held.value > 0 || collector.hasEnded } && held.value > 0, "no helper has a piece")
      // All that is left is what helpers have.
      let isRestDone = spin(forAtMost: 300) { (try? Self.unprotected(region)) == held.value * Self.piece }
      check(isRestDone, "the others did not do the rest")
      _ = spin(forAtMost: 60) { collector.hasEnded || collector.isAsleep }
      yieldForAWhile(milliseconds: 20)
      check(!collector.hasEnded, "the collection did not wait for its helpers")
      mayGoOn.value = 1
      try collector.join()
      TestHooks.set(.protectingPiece, nil)
      check(count.value, is: Self.pages)
      try check(Self.unprotected(region), is: 0)
      try tracker.stop()
      try space.close()
    }
  }
  @Test("W5: a piece that cannot be protected fails the collection, whichever thread had it, and nothing is lost")
  func fails() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(900)
      let space = try AddressSpace.forTests()
      let region = try space.map(.anonymous(hugePages: .never), pages: Self.pages)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(.handlerThread, options: .init(faultAround: .fixed(64)))
      try region.fill(with: 2)
      TestHooks.set(.protectingPiece) { piece in if piece == 0 { Kernel.pause(nanoseconds: 1_000_000) } }
      // The first piece of all, the first of those that are shared, one in the middle, and the last.
      for piece in [0, 1, 7, 15] {
        Injection.arm(.writeProtect, .noMemory, skip: piece)
        check(errorCode { _ = try tracker.collect() }, is: .outOfMemory, "piece \(piece)")
        check(Injection.count, is: 1, "piece \(piece)")
        Injection.disarm()
      }
      TestHooks.set(.protectingPiece, nil)
      try check(tracker.collect().count, is: Self.pages)
      try check(Self.unprotected(region), is: 0)
      region.poke(3, 9)
      try check(tracker.collect().contains(9), "a write is lost")
      try tracker.stop()
      try space.close()
    }
  }
}
