import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("What fault readers share") struct ReaderShareTests {
  /// Whether a fault waits to be read.
  private static func hasMessage(_ region: Region) -> Bool {
    let descriptor = unsafe region.attachments.find(RegionProtection.self)!.domain.pointee.channels[0].listening
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return unsafe poll(&entry, 1, 0) == 1
  }

  @Test("A reader that is held up in one region keeps none that waits for another reader") func oneRegionAtATime() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let (inside, mayGoOn) = (Shared(), Shared())
      let regions = try (0..<2).map { _ in try space.map(.anonymous(hugePages: .never), pages: 4) }
      let trackers = try regions.map { region in
        try region.trackWrites(.handlerThread) { _ in
          inside.add()
          // Longer than anybody waits for it below.
          while mayGoOn.value == 0 { sched_yield() }
        }
      }
      // Both readers are about to wait as both regions have something for them, and the second waits after the first.
      let (arrivals, mayWait) = (Shared(), Shared())
      TestHooks.set(.readerIdle) { _ in
        let number = arrivals.add()
        _ = spin { mayWait.value >= number }
      }
      check(spin { arrivals.value == 2 }, "\(arrivals.value) readers are about to wait")
      let writers = regions.map { region in TestThread { try region.store(UInt8(7), toByteOffset: 0) } }
      check(spin { regions.allSatisfy(Self.hasMessage) }, "they do not fault")
      mayWait.value = 1
      check(spin { inside.value == 1 }, "nobody serves them")
      mayWait.value = .max
      check(spin { inside.value == 2 }, "\(inside.value) regions are served")
      TestHooks.set(.readerIdle, nil)
      mayGoOn.value = 1
      for writer in writers { try writer.join() }
      for tracker in trackers { try check(tracker.collect().runs, is: [0..<1]) }
      for tracker in trackers { try tracker.stop() }
      try space.close()
    }
  }
}
