import Synchronization
import Testing

@testable import PinKit

@Suite("A change in parts, and who subscribes meanwhile") struct RemainingPartsTests {
  private final class Late: Sendable {
    let subscription = Mutex<Subscription?>(nil)
    let thread = Mutex<TestThread?>(nil)
  }

  @Test("N9: the second start is about the parts that are left") func rest() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let tracker = try region.trackWrites()
    let (first, second) = (RecordingNotifier(), RecordingNotifier())
    let subscription = try region.subscribe(first)
    let protection = try region.protection()
    var done: [[Range<Int>]] = []
    let late = Late()
    try protection.untilDone(.clear, in: [[0..<1], [2..<3, 5..<6]]) { domain, part, _ throws(PinError) in
      done.append(part)
      if part == [0..<1] {
        // It may have to wait for the lock, and is known before.
        let before = domain.subscriptionVersion
        let thread = TestThread { late.subscription.withLock { $0 = try? region.subscribe(second) } }
        late.thread.withLock { $0 = thread }
        _ = spin { domain.subscriptionVersion != before }
      }
      return true
    }
    try late.thread.withLock { try $0?.join() }
    #expect(done == [[0..<1], [2..<3, 5..<6]])
    #expect(first.take(.start, .end).map(\.pages) == [0..<6, 0..<6, 2..<6, 2..<6])
    #expect(second.take(.start, .end).map(\.pages) == [2..<6, 2..<6])
    late.subscription.withLock { $0?.remove() }
    subscription.remove()
    try tracker.stop()
    try space.close()
  }
}
