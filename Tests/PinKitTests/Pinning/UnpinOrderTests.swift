import CTestSupport
import Testing

@testable import PinKit

@Suite("The order in which a pin is given up") struct UnpinOrderTests {
  @Test("P4: the frame's references go first: as long as they are there the page is found pinned", arguments: [true, false])
  func order(isForWriting: Bool) async {
    await #expect(processExitsWith: .success) { [isForWriting = isForWriting as Bool] in
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 8)
      for page in 0..<8 { try region.setWord(page, 0, UInt64(page + 1)) }
      let looks = Shared()
      let findings = Findings()
      // Once with what the first pin makes, and once without a lock.
      for round in 1...2 {
        let pin = try region.pin(3..<5, isForWriting ? .write : [])
        try check(region.mayBePinned(3), "it is not pinned")
        TestHooks.set(.unpinning) { page in
          looks.add()
          if (try? region.frameState(page).counts.mayBePinned) != false { findings.note("the frame of \(page) is pinned") }
          if !region.table.current(page).isPinned { findings.note("page \(page) is not pinned") }
          let code = errorCode { try region.discard(page..<page + 1) }
          if code != .pinned { findings.note("page \(page) was dropped beside its pin") }
        }
        pin.unpin()
        TestHooks.set(.unpinning, nil)
        check(looks.value, is: 2 * round)
        check(findings.all, is: [])
        try check(region.word(3), is: 4)
        try check(!region.mayBePinned(3) && !region.mayBePinned(4), "it is pinned")
      }
      try region.discard(3..<5)
      try check(region.word(3), is: 0)
      try space.close()
    }
  }
}
