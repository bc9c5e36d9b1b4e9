import CTestSupport
import Glibc
import Logging
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// The kernel refuses to map a page that was opened for a reader.
@Suite("A sealed page that cannot be mapped") struct SealMappingTests {
  private static func make() throws -> (AddressSpace, Region, LogCapture) {
    let log = LogCapture()
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = .failRegion
    configuration.patience = 0.2
    configuration.logger = log.logger
    let space = try AddressSpace(configuration: configuration)
    let region = try space.map(.pool, pages: 32)
    try region.setSealer(RecordingSealer())
    for page in 0..<32 { region.poke(UInt8(page + 1), page) }
    try region.seal(0..<32)
    return (space, region, log)
  }

  private static func address(_ region: Region, _ page: Int) -> UInt64 {
    UInt64(region.addresses.start) + UInt64(page * 4096)
  }

  /// The failure of a region, once it has one.
  private static func failure(_ region: Region) -> PinError.Code? {
    var code: PinError.Code?
    _ = spin {
      // Nothing is read: in the moment in which the region is closed that is SIGBUS, as through any pointer.
      code = errorCode { try region.makeAccessible(0..<1) }
      return code != nil
    }
    return code
  }

  @Test("K3: a userfaultfd closed while a page is opened: the spare maps it, and the reader goes on")
  func closedMeanwhile() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let (space, region, log) = try Self.make()
      for (round, page) in [3, 9, 20].enumerated() {
        TestHooks.set(.opening) { opened in if opened == page { check(ct_close_userfaultfds(1, 0), is: 1) } }
        check(region.peek(page), is: UInt8(page + 1))
        TestHooks.set(.opening, nil)
        while log.texts(.error).count <= round { try space.faultHandler().alarm.signal() }
        check(log.texts(.error).last!.contains("closed by other code"), log.texts(.error).last!)
      }
      for page in 0..<32 { check(region.peek(page), is: UInt8(page + 1)) }
      try region.seal(0..<32)
      check(region.peek(5), is: 6)
      check(log.texts(.critical), is: [])
      try space.close()
    }
  }

  @Test("K3: all userfaultfds closed while a page is opened: the region fails and says why, and nobody sleeps for ever")
  func allClosedMeanwhile() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      _ = ct_handle(SIGBUS, CInt(ct_siginfo))
      _ = ct_handle(SIGSEGV, CInt(ct_siginfo))
      let (space, region, log) = try Self.make()
      TestHooks.set(.opening) { _ in check(ct_close_userfaultfds(2, 0), is: 2) }
      let reader = HostThread { _ = ct_try_load(Self.address(region, 3)) }
      reader.join()
      TestHooks.set(.opening, nil)
      check(Self.failure(region), is: .handlerLost)
      while log.texts(.critical).isEmpty { Kernel.relax() }
      check(log.texts(.critical)[0].contains("descriptorClosed"), log.texts(.critical)[0])
      try space.close()
    }
  }

  @Test("K3: what the kernel refuses once is tried again, and what it refuses for good fails the region: no reader sleeps")
  func refusals() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(100)
      // Before PinKit's own, which pass on what they have no answer for.
      _ = ct_handle(SIGBUS, CInt(ct_siginfo))
      _ = ct_handle(SIGSEGV, CInt(ct_siginfo))
      let forGood = Int.max >> 33
      let table: [(Errno, Int, PinError.Code?)] = [
        (.resourceTemporarilyUnavailable, 1, nil), (.interrupted, 1, nil), (.badFileDescriptor, 1, nil),
        (.inappropriateIOCTLForDevice, 1, nil), (.badAddress, 1, nil), (.badAddress, 30, nil),
        (.noSuchFileOrDirectory, 1, nil), (.noSuchFileOrDirectory, 30, nil), (.invalidArgument, 1, .handlerLost),
        (.badFileDescriptor, forGood, .handlerLost), (.invalidArgument, forGood, .handlerLost),
        (.noMemory, forGood, .handlerLost), (.ioError, forGood, .handlerLost),
        (.resourceTemporarilyUnavailable, forGood, .timedOut),
      ]
      for (errno, times, code) in table {
        let name = "\(errno) × \(times)"
        let (space, region, _) = try Self.make()
        Injection.arm(.continueMapping, errno, times: times)
        let found = Shared(1000)
        let reader = TestThread { found.value = Int(ct_try_load(Self.address(region, 3))) }
        if !spin(until: { reader.hasEnded }) { Issue.record("the reader sleeps: \(name)") }
        let count = Injection.count
        Injection.disarm()
        try reader.join()
        check(count > 0, "not reached: \(name)")
        if let code {
          check(found.value, is: Int(-SIGBUS), name)
          check(Self.failure(region), is: code, name)
        } else {
          check(found.value, is: 4, name)
          for page in 0..<32 { check(region.peek(page), is: UInt8(page + 1), name) }
          try region.seal(0..<32)
          check(region.peek(7), is: 8, name)
        }
        try space.close()
      }
    }
  }

  @Test("K3: pages that cannot be mapped together are mapped one by one")
  func neighbours() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      for errno in [Errno.invalidArgument, .noMemory, .noSuchFileOrDirectory, .badAddress, .badFileDescriptor] {
        let (space, region, _) = try Self.make()
        // Protected, so that neighbours are mapped along.
        try region.snapshot().close()
        // Open, and not mapped.
        Injection.arm(.continueMapping, .noMemory)
        try region.makeAccessible(16..<32)
        check(Injection.count, is: 1)
        Injection.arm(.continueMapping, errno)
        let faults = space.statistics.minorFaults
        for page in 16..<32 { check(region.peek(page), is: UInt8(page + 1), "\(errno)") }
        check(Injection.count, is: 1)
        Injection.disarm()
        // Counted when the thread that faulted has been woken.
        while space.statistics.minorFaults == faults { Kernel.relax() }
        check(space.statistics.minorFaults, is: faults + 1, "\(errno)")
        try check(region.byte(20), is: 21)
        try region.seal(0..<32)
        check(region.peek(20), is: 21)
        try space.close()
      }
    }
  }
}
