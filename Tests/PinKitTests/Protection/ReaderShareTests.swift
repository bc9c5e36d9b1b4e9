import CTestSupport
import Synchronization
import Testing

@testable import PinKit

@Suite("What fault readers share") struct ReaderShareTests {
  @Test("A reader that is held up in one region keeps none that waits for another reader") func oneRegionAtATime() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let (inside, mayGoOn) = (Shared(), Shared())
      let regions = try (0..<2).map { _ in try space.map(.anonymous(hugePages: .never), pages: 4) }
      let trackers = try regions.map { region in
        try region.trackWrites(.handlerThread) { _ in
          inside.add()
          _ = spin { mayGoOn.value == 1 }
        }
      }
      // Both readers are about to wait as both regions have something for them.
      let held = HeldThreads(at: .readerIdle, 0...)
      check(spin { held.count == 2 }, "\(held.count) readers are about to wait")
      let writers = regions.map { region in TestThread { try region.store(UInt8(7), toByteOffset: 0) } }
      check(spin { writers.allSatisfy(\.isAsleep) }, "they do not fault")
      held.letGo()
      check(spin(forAtMost: 200) { inside.value == 2 }, "\(inside.value) regions are served")
      TestHooks.set(.readerIdle, nil)
      mayGoOn.value = 1
      for writer in writers { try writer.join() }
      for tracker in trackers { try check(tracker.collect().runs, is: [0..<1]) }
      for tracker in trackers { try tracker.stop() }
      try space.close()
    }
  }
}
