import CTestSupport
import Testing

@testable import PinKit

@Suite("A sealer for a region that is in use", .serialized) struct SealConnectingTests {
  @Test(
    "K3: a page that is not mapped is touched in the moment in which its region is connected: whoever touches it goes on",
    arguments: [1, 4])
  func touched(slices: Int) async {
    await #expect(processExitsWith: .success) { [slices = slices as Int] in
      ct_deadline(60)
      let space = try AddressSpace.forTests(slices: RegionSlices(smallest: 16 << 10, most: slices))
      let region = try space.map(.pool, pages: 16)
      do {
        let pin = try region.pin(3..<4, .write)
        try unsafe pin.withUnsafeMutableBytes { unsafe $0.storeBytes(of: 77, as: UInt8.self) }
      }
      let address = UInt64(region.addresses.start) + 3 * 4096
      let hasRead = Shared()
      let reader = HostThread {
        while hasRead.value == 0 { Kernel.pause(nanoseconds: 1_000_000) }
        check(ct_load(address), is: 77)
        hasRead.value = 2
      }
      TestHooks.set(.connecting) { _ in
        // The first slice has the page.
        guard hasRead.value == 0 else { return }
        hasRead.value = 1
        check(spin { hasRead.value == 2 }, "nobody has woken the thread")
      }
      try region.setSealer(RecordingSealer())
      TestHooks.set(.connecting, nil)
      check(hasRead.value, is: 2)
      reader.join()
      try space.close()
    }
  }

  @Test("K3: a reader that comes by chance before a region has a delivery lets nobody sleep whose fault it has read of")
  func readTooEarly() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 16)
      do {
        let pin = try region.pin(3..<4, .write)
        try unsafe pin.withUnsafeMutableBytes { unsafe $0.storeBytes(of: 77, as: UInt8.self) }
      }
      let protection = try region.protection()
      let address = UInt64(region.addresses.start) + 3 * 4096
      let stage = Shared()
      let reader = HostThread {
        stage.wait(for: 1, thenSpin: 0)
        check(ct_load(address), is: 77)
        stage.value = 2
      }
      let before = region.counters[.messages]
      TestHooks.set(.taken) { _ in
        protection.handler.rearm(
          unsafe protection.domain.pointee.channels[0].listening, slot: protection.slotIndex!, slice: 0)
        stage.value = 1
        check(spin { region.counters[.messages] > before }, "nobody reads")
      }
      try region.setSealer(RecordingSealer())
      TestHooks.set(.taken, nil)
      check(spin { stage.value == 2 }, "nobody has woken the thread")
      reader.join()
      try space.close()
    }
  }
}
