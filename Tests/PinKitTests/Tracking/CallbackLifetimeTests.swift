import CTestSupport
import Foundation
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

@Suite("Callbacks and values at the edges") struct CallbackLifetimeTests {
  @Test("The last reference to a tracker may go inside its own callback", arguments: Mechanisms.synchronous)
  func dropInCallback(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      final class Holder: Sendable { let tracker = Mutex<WriteTracker?>(nil) }
      ct_deadline(60)
      let space = try AddressSpace()
      let region = try space.map(.anonymous(hugePages: .never), pages: 8)
      let holder = Holder()
      try holder.tracker.withLock {
        $0 = try region.trackWrites(mechanism) { [holder] _ in holder.tracker.withLock { $0 = nil } }
      }
      try region.fill(with: 1)
      // The watchdog stops it soon; then the region can be tracked by another mechanism.
      while (try? region.trackWrites(.asynchronous)) == nil { Kernel.relax() }
      try region.unmap()
      try space.close()
    }
  }

  @Test(
    "A callback is called once for a page, however often the kernel asks to try again", arguments: Mechanisms.synchronous)
  func onceWhenRetried(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      final class Calls: Sendable { let pages = Mutex<[Int]>([]) }
      let calls = Calls()
      let space = try AddressSpace()
      let region = try space.map(.anonymous(hugePages: .never), pages: 512)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism) { write in
        calls.pages.withLock { $0 += write.opened }
      }
      Injection.arm(
        mechanism == .mprotect ? .mprotect : .unprotect,
        mechanism == .mprotect ? .noMemory : .resourceTemporarilyUnavailable, times: 2)
      try region.store(UInt8(2), toByteOffset: 200 * region.pageSize)
      Injection.disarm()
      try region.store(UInt8(2), toByteOffset: 201 * region.pageSize)
      let set = try tracker.collect()
      precondition(set.contains(200) && set.contains(201))
      let called = calls.pages.withLock { $0 }
      precondition(called.count == Set(called).count, "\(called.count) calls for \(Set(called).count) pages")
      precondition(Set(called) == Set(set.pages))
      try space.close()
    }
  }

  @Test("A dirty set survives JSON, and refuses what cannot be one")
  func json() throws {
    var set = DirtySet(pageCount: 64, runs: [3..<6, 10..<12])
    set.append(20..<24, isFaultAround: true)
    #expect(try JSONDecoder().decode(DirtySet.self, from: JSONEncoder().encode(set)) == set)
    for hostile in [
      #"{"pageCount":-1,"runs":[],"faultAroundRuns":[]}"#,
      #"{"pageCount":8,"runs":[[4,9]],"faultAroundRuns":[]}"#,
      #"{"pageCount":8,"runs":[[4,6],[2,3]],"faultAroundRuns":[]}"#,
      #"{"pageCount":8,"runs":[[2,4]],"faultAroundRuns":[[4,5]]}"#,
    ] {
      #expect(throws: DecodingError.self) { try JSONDecoder().decode(DirtySet.self, from: Data(hostile.utf8)) }
    }
    #expect(throws: DecodingError.self) {
      try JSONDecoder().decode(AddressRange.self, from: Data(#"{"start":2,"end":1}"#.utf8))
    }
  }

  @Test("Executable memory is not adopted") func executable() throws {
    let bytes = unsafe mmap(nil, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    let start = try #require(unsafe bytes != MAP_FAILED ? UInt(bitPattern: bytes) : nil)
    defer { unsafe munmap(bytes, 8192) }
    let space = try AddressSpace()
    let error = #expect(throws: PinError.self) { try space.adopt(AddressRange(start: start, count: 8192)) }
    #expect(error?.code == .invalidArgument)
    try space.close()
  }
}
