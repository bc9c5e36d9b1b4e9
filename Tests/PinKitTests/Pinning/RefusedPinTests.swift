import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// What takes all of some pages or none opens none of them for nothing: nobody wrote them, so no exact set has them.
@Suite("P6, W5: exact sets after refusals", .serialized) struct RefusedPinTests {
  /// Asks for pages 8 to 11 for a long time, in vain.
  private static func expectRefusals(_ region: Region, _ code: PinError.Code) {
    check(errorCode { _ = try FixedBuffers(region, [0..<2, 8..<12]) }, is: code, "buffers")
    check(errorCode { _ = try unsafe region.register(8..<12) { _ in {} } }, is: code, "registration")
  }

  @Test("P6, W5: a page that has as many pins as it can leaves those before it alone", arguments: Mechanisms.all)
  func full(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 16)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    let pins = try (0..<PageTable.Entry.maximumPinsForWriting).map { _ in KeptPin(try region.pin(10..<11, .write)) }
    #expect(try tracker.collect().runs == [10..<11])
    Self.expectRefusals(region, .limitReached)
    #expect(errorCode { _ = try region.beginIO(into: 8..<12) } == .limitReached)
    #expect(try tracker.collect().runs == [10..<11])
    #expect(pins.count == 2047 && !region.table[9].isPinned)
    try tracker.stop()
    withExtendedLifetime(pins) {}
  }

  enum SealedPage: Sendable, CaseIterable { case unopened, tamperedWith }

  @Test("P6, W5: a sealed page that does not open leaves those before it alone", arguments: SealedPage.allCases)
  func sealed(_ kind: SealedPage) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 16)
    try region.setSealer(RecordingSealer(), SealingOptions(onAccess: kind == .unopened ? .fail : .open))
    for page in 0..<16 { region.poke(1, page) }
    let tracker = try region.trackWrites(.handlerThread)
    _ = try tracker.collect()
    try region.seal(10..<11)
    if kind == .tamperedWith { try region.tamper(10) }
    let code: PinError.Code = kind == .unopened ? .sealed : .tampered
    Self.expectRefusals(region, code)
    #expect(errorCode { _ = try region.beginIO(into: 8..<12) } == code)
    #expect(try tracker.collect().isEmpty)
    try tracker.stop()
    try space.close()
  }

  @Test(
    "P6, W5, K6: a page of adopted memory without bytes leaves those before it alone",
    .enabled(if: GuardPages.areKnown, "needs MADV_GUARD_INSTALL (Linux 6.13)"), arguments: Mechanisms.synchronous)
  func withoutBytes(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let memory = try ForeignMemory(.adoptedAnonymous, pages: 16)
    defer { memory.unmap() }
    let region = try space.adopt(memory.range)
    try region.fill(with: 1)
    #expect(GuardPages.install(memory.range, 10))
    let tracker = try region.trackWrites(mechanism)
    Self.expectRefusals(region, .inaccessible)
    #expect(try tracker.collect().isEmpty)
    try tracker.stop()
    try region.unmap()
    try space.close()
  }

  enum StoreRefusal: Sendable, CaseIterable { case toRead, toBeWritten }

  @Test("P6, W5: a page that its store refuses leaves those before it alone", arguments: StoreRefusal.allCases)
  func store(_ refusal: StoreRefusal) throws {
    let space = try AddressSpace.forTests()
    let store = UnrulyStore(pages: 16)
    store.set {
      let refuse = { @Sendable (pages: Range<Int>) throws(PinError) in if pages.contains(10) { throw .broken } }
      if refusal == .toRead { $0.reading = refuse } else { $0.granting = refuse }
    }
    let region = try space.map(.file(store, fillAround: .exact), pages: 16)
    let tracker = try region.trackWrites()
    #expect(errorCode { _ = try region.beginIO(into: 8..<12) } == .inputOutput)
    #expect(try tracker.collect().isEmpty)
    #expect((8..<12).allSatisfy { !region.supply!.isDirty($0) })
    try tracker.stop()
    try region.unmap()
    try space.close()
  }

  @Test(
    "P6, W5: buffers beyond RLIMIT_MEMLOCK open no page; within it they are had",
    .enabled(if: geteuid() == 0, "needs root, to be no longer root"),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer locks no memory"), arguments: Mechanisms.all)
  func lockedMemory(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 64)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism)
      // Once before, as the page map is root's.
      try check(tracker.collect().isEmpty, "written before")
      check(ct_limit_locked_memory(64 << 10), is: 0)
      check(ct_become_nobody(), is: 0)
      check(errorCode { _ = try FixedBuffers(region, [0..<16, 32..<48]) }, is: .limitReached)
      try check(tracker.collect().runs, is: [])
      do {
        let buffers = try FixedBuffers(region, [0..<2])
        try check(tracker.collect().runs, is: [0..<2])
        try buffers.close()
      }
      try tracker.stop()
      try space.close()
    }
  }

  /// Kernels differ in how often they count a huge page that two buffers have: what one of them would take is not refused before it is asked.
  @Test("P6, K8: pages that buffers share count once where they may be huge, and each time where they are not")
  func sharedPages() throws {
    let space = try AddressSpace.forTests()
    let ranges = [4..<20, 0..<8, 10..<12, 30..<31]
    for backing in [Backing.anonymous, .anonymous(hugePages: .prefer), .pool(hugePages: .prefer)] {
      #expect(try FixedBuffers.leastLocked(space.map(backing, pages: 64), ranges) == 21 * 4096, "\(backing)")
    }
    for backing in [Backing.anonymous(hugePages: .never), .pool] {
      #expect(try FixedBuffers.leastLocked(space.map(backing, pages: 64), ranges) == 27 * 4096, "\(backing)")
    }
    try space.close()
  }

  private struct Trouble: Error {}

  @Test("P6: what a driver had that then throws is in the next set: it may have written", arguments: Mechanisms.all)
  func driver(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 16)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    #expect(throws: Trouble.self) {
      _ = try unsafe region.register(2..<4) { bytes in
        unsafe bytes.storeBytes(of: 7, as: UInt8.self)
        throw Trouble()
      }
    }
    #expect(region.peek(2) == 7)
    #expect(try tracker.collect().runs == [2..<4])
    #expect(try tracker.collect().isEmpty)
    try tracker.stop()
    try space.close()
  }
}
