import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// Accesses are noted by each thread for itself: whoever must wait for them finds all.
@Suite("Whoever waits for accesses to a region") struct AccessGateTests {
  private func nest(_ depth: Int, _ region: Region, _ body: () throws -> Void) throws {
    if depth == 0 { return try body() }
    try unsafe region.withUnsafeMutableBytes { _ in try nest(depth - 1, region, body) }
  }

  @Test("W5: unmapping waits for accesses, however deep they are nested", arguments: [1, 6, 7, 8, 20])
  func unmapping(_ depth: Int) throws {
    let space = try AddressSpace.forTests()
    let (region, other) = (try space.map(.pool, pages: 4), try space.map(.pool, pages: 4))
    try region.store(UInt64(5), toByteOffset: 0)
    var thread: TestThread?
    try nest(3, other) {
      try nest(depth, region) {
        let unmapper = TestThread { try region.unmap() }
        thread = unmapper
        while !region.gate.isClosed { yieldForAWhile(milliseconds: 1) }
        _ = spin(forAtMost: 5) { unmapper.hasEnded || unmapper.isAsleep }
        #expect(!unmapper.hasEnded)
        #expect(ct_load(UInt64(region.addresses.start)) == 5)
        #expect(errorCode { _ = try region.load(fromByteOffset: 0, as: UInt8.self) } == .unmapped)
        #expect(errorCode { try region.unmap() } == .wouldDeadlock)
      }
      // The accesses to another region are nobody's concern.
      try thread?.join()
    }
    #expect(errorCode { try region.unmap() } == .unmapped)
    try other.unmap()
    try space.close()
  }

  @Test("W1: taking rights away waits for an access that has checked them", arguments: [0, 7])
  func rights(_ depth: Int) async {
    await #expect(processExitsWith: .success) { [depth = depth as Int] in
      ct_deadline(60)
      let gate = try StoreGate()
      let store = UnrulyStore(pages: 4)
      store.set {
        $0.isQuick = false
        $0.reading = { _ throws(PinError) in gate.wait() }
      }
      let space = try AddressSpace.forTests()
      let region = try space.map(.file(store, fillAround: .exact), pages: 4)
      let loader = HostThread {
        try? AccessGateTests().nest(depth, region) {
          let byte = try region.load(fromByteOffset: 4096, as: UInt8.self)
          check(byte, is: 2)
        }
      }
      while gate.waiting == 0 { Kernel.pause(nanoseconds: 1_000_000) }
      let attempt = try region.tryProtect(1..<2, to: .none)
      check(attempt == .wouldBlock, "rights were taken from an access")
      let protector = TestThread { try region.protect(1..<2, to: .none) }
      _ = spin(forAtMost: 5) { protector.hasEnded || protector.isAsleep }
      check(!protector.hasEnded, "rights were taken from an access")
      try gate.open()
      loader.join()
      try protector.join()
      check(errorCode { _ = try region.load(fromByteOffset: 4096, as: UInt8.self) }, is: .accessDenied)
      try space.close()
    }
  }

  @Test(
    "W5: an access in a first-write callback, above as many as can be noted, leaves the others alone", arguments: [5, 6, 7])
  func callbacks(_ depth: Int) async {
    await #expect(processExitsWith: .success) { [depth = depth as Int] in
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let (region, other) = (try space.map(.pool, pages: 4), try space.map(.pool, pages: 4))
      try region.store(UInt8(5), toByteOffset: 0)
      let seen = Shared()
      let tracker = try region.trackWrites(
        .inPlace,
        onFirstWrite: { _ in
          if (try? region.load(fromByteOffset: 0, as: UInt8.self)) == 5 { seen.add() }
        })
      try AccessGateTests().nest(depth, other) { try region.store(UInt8(6), toByteOffset: 0) }
      check(seen.value, is: 1)
      check(!region.gate.isMine && !other.gate.isMine, "something is left behind")
      try tracker.stop()
      try other.unmap()
      try region.unmap()
      try space.close()
    }
  }

  @Test("More threads than have a place for a note: accesses are waited for all the same")
  func manyThreads() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 1)
      try region.store(UInt8(9), toByteOffset: 0)
      let (inside, mayGo) = (Shared(), Shared())
      let threads = (0..<1100).map { _ in
        HostThread {
          try? unsafe region.withUnsafeMutableBytes { bytes in
            inside.add()
            while mayGo.value == 0 { Kernel.pause(nanoseconds: 5_000_000) }
            unsafe check(bytes[0], is: 9)
          }
        }
      }
      while inside.value < 1100 { Kernel.pause(nanoseconds: 1_000_000) }
      let unmapper = TestThread { try region.unmap() }
      while !region.gate.isClosed { Kernel.pause(nanoseconds: 1_000_000) }
      _ = spin(forAtMost: 2) { unmapper.hasEnded }
      check(!unmapper.hasEnded, "the region went beneath its accesses")
      mayGo.value = 1
      for thread in threads { thread.join() }
      try unmapper.join()
      try space.close()
    }
  }
}
