import CTestSupport
import Testing

@testable import PinKit

@Suite("Clones of relatives") struct RelativeCloneTests {
  @Test(
    "W4: while a clone of a clone is being counted, the owner's writes stay where its own pin sees them",
    arguments: Mechanisms.synchronous)
  func counting(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      for policy in [ReusePolicy.mapcount, .exclusive] {
        let space = try AddressSpace.forTests()
        let parent = try space.map(.pool, pages: 8)
        for page in 0..<8 { try parent.setWord(page, 0, UInt64(page + 1)) }
        let child = try parent.clone(reuse: policy, mechanism: mechanism)
        // From now on the frame is the parent's alone, which pins it.
        try child.setWord(3, 0, 100)
        let pin = try parent.pin(3..<4)
        let frame = try parent.frameState(3).frame
        let held = HeldThreads(at: .counted, 0...0)
        let cloning = TestThread {
          let second = try child.clone(reuse: policy, mechanism: mechanism)
          try check(second.word(3), is: 100)
        }
        check(held.first(), "nobody counts")
        try check(parent.frameState(3).counts.mappings, is: 2, "\(policy)")
        try parent.setWord(3, 0, 50)
        held.letGo()
        try cloning.join()
        TestHooks.set(.counted, nil)
        let seen = unsafe pin.withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
        check(seen, is: 50, "through the pin, \(policy)")
        try check(parent.frameState(3).frame, is: frame, "\(policy)")
        try check(parent.word(3), is: 50)
        try check(child.word(3), is: 100)
        pin.unpin()
        try space.close()
      }
    }
  }
}
