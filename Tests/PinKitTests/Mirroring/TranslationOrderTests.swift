import CTestSupport
import Testing

@testable import PinKit

/// What is found while a page changes, and what is known of it after.
@Suite("The order of translations") struct TranslationOrderTests {
  @Test(
    "N5: while a page goes to another frame there is nothing to find, and then the new one",
    arguments: Mechanisms.synchronous)
  func between(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      for point in [TestHooks.Point.cleared, .mapped] {
        let space = try AddressSpace.forTests()
        let (region, clone) = try sharedPair(space, mechanism)
        let subscription = try clone.subscribe(RecordingNotifier())
        let protection = try clone.protection()
        let before = try clone.translate(3, forWriting: false, by: protection).address
        let held = HeldThreads(at: point, 0...3)
        let writer = TestThread { try clone.setWord(3, 0, 50) }
        check(held.first(), "the page keeps its frame")
        switch protection.translate(3, forWriting: false) {
        case .notNow: break
        case let outcome: Issue.record("\(point): \(outcome)")
        }
        held.letGo()
        try writer.join()
        TestHooks.set(point, nil)
        let after = try clone.translate(3, forWriting: false, by: protection).address
        check(after != before, "the old frame is found")
        let seen = unsafe UnsafePointer<UInt64>(bitPattern: after)!.pointee
        check(seen, is: 50)
        try check(region.word(3), is: 4)
        subscription.remove()
        try space.close()
      }
    }
  }

  @Test("N1, N11: what a mirror or a window writes under .asynchronous is in the next set, also where it is closed before")
  func closedBeforeCollection() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 16)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(.asynchronous)
    _ = try tracker.collect()
    for isClosed in [true, false] {
      let mirror = try SecondaryMMU(region)
      let window = try DirectMapping(region, pages: 8..<10)
      _ = try mirror.word(2)
      #expect(try tracker.collect().isEmpty)
      try mirror.setWord(3, 0, 7)
      try window.setWord(9, 0, 8)
      // Whoever may write it, and has not said so to anybody but the mirror.
      try mirror.translate(5, for: .writing)
      if isClosed {
        mirror.close()
        window.close()
      }
      #expect(try tracker.collect().runs == [3..<4, 5..<6, 8..<10], "\(isClosed)")
      #expect(try tracker.collect().isEmpty)
      mirror.close()
      window.close()
    }
    try tracker.stop()
    try space.close()
  }
}
