import CTestSupport
import Glibc
import SystemPackage
import Testing

@testable import PinKit

/// Ways in which a change could have been in no set at all.
@Suite("W5: nothing is lost") struct LostWriteTests {
  private static func code(_ body: () throws -> Void) -> PinError.Code? {
    do { try body() } catch { return (error as? PinError)?.code }
    return nil
  }

  @Test("A resume that failed can be tried again", arguments: Mechanisms.all)
  func resumeAgain(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try Tracked(mechanism)
      try tracked.tracker.pause()
      let call: Injection.Call =
        mechanism == .mprotect ? .mprotect : mechanism == .asynchronous ? .pagemapScan : .writeProtect
      Injection.arm(call, .noMemory)
      check(Self.code { try tracked.tracker.resume() }, is: .outOfMemory)
      Injection.disarm()
      try tracked.tracker.resume()
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("After a pause that failed half-way, resuming protects everything again") func pauseHalfway() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let tracked = try Tracked(.mprotect)
      try tracked.region.protect(32..<33)
      Injection.arm(.mprotect, .noMemory, skip: 1)
      check(Self.code { try tracked.tracker.pause() }, is: .outOfMemory)
      Injection.disarm()
      try tracked.tracker.resume()
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("A discard that begins before tracking and ends after is in a set") func discardBesideStart() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(30)
      let space = try AddressSpace.forTests()
      let region = try space.map(.anonymous(hugePages: .never), pages: 4)
      try region.fill(with: 1)
      // Whoever drops these pages waits until the announcement is read.
      let announced = try Userfaultfd(features: [.pagefaultFlagWP, .eventRemove])
      try announced.register(region.addresses, for: .writeProtect)
      let discarder = TestThread { try region.discard(0..<1) }
      var isAnnounced = pollfd(fd: announced.descriptor, events: Int16(POLLIN), revents: 0)
      while unsafe poll(&isAnnounced, 1, 100) < 1 {}
      let tracker = try region.trackWrites(.mprotect)
      var batch = FaultBatch()
      while batch.read(from: announced.descriptor) != 0 { Kernel.relax() }
      try discarder.join()
      try check(region.load(fromByteOffset: 0, as: UInt8.self), is: 0)
      try check(tracker.collect().runs, is: [0..<1])
      try announced.unregister(region.addresses)
      try space.close()
    }
  }

  @Test(
    "What a discard dropped before it failed is in a set",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer makes mlock(2) do nothing"), arguments: Mechanisms.all)
  func discardHalfway(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(30)
      let memory = try ForeignMemory(.adoptedShared, pages: 4)
      unsafe mlock(UnsafeRawPointer(bitPattern: memory.range.start + 8192), 4096)
      let space = try AddressSpace.forTests()
      let region = try space.adopt(memory.range)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism)
      check(Self.code { try region.discard(0..<4) }, is: .unsupported)
      try check(region.load(fromByteOffset: 0, as: UInt8.self), is: 0)
      let dirty = try tracker.collect()
      check(dirty.contains(0) && dirty.contains(1), "\(dirty.runs)")
      try space.close()
      memory.unmap()
    }
  }

  @Test("What a scan protected before it failed has been reported") func scanHalfway() throws {
    let memory = try ForeignMemory(.adoptedAnonymous, pages: 8)
    defer { memory.unmap() }
    for page in 0..<8 { ct_store(UInt64(memory.range.start) + UInt64(page * 4096), 1) }
    let descriptor = try Userfaultfd(features: [.wpAsync, .wpUnpopulated])
    let half = AddressRange(start: memory.range.start, count: 4 * 4096)
    try descriptor.register(half, for: .writeProtect)
    let pageMap = try PageMap()
    var found: [AddressRange] = []
    // The second half is not registered: protecting it is refused, after the first half was protected.
    #expect(throws: PinError.self) {
      try pageMap.scan(memory.range, PageMap.Query(required: .written, writeProtects: true)) { run, _ in found.append(run) }
    }
    var left: [AddressRange] = []
    try pageMap.scan(half, PageMap.Query(required: .written)) { run, _ in left.append(run) }
    #expect(left.isEmpty)
    #expect(found == [half])
    try descriptor.unregister(half)
  }

  static let hasMergedPages = unsafe access("/sys/kernel/mm/ksm/run", W_OK) == 0

  @Test(
    "Pages that the kernel may merge keep their protection", .enabled(if: hasMergedPages, "/sys/kernel/mm/ksm is root's"),
    arguments: Mechanisms.all)
  func mergedPages(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let region = try space.map(.anonymous(hugePages: .never), pages: 64)
      try region.fill(with: 1)
      check(unsafe madvise(UnsafeMutableRawPointer(bitPattern: region.addresses.start), region.addresses.count, 12), is: 0)
      let tracker = try region.trackWrites(mechanism)
      func put(_ text: String, _ name: String) {
        let descriptor = unsafe open("/sys/kernel/mm/ksm/\(name)", O_WRONLY)
        _ = unsafe write(descriptor, text, text.utf8.count)
        _ = close(descriptor)
      }
      func scans() throws -> Int {
        Int(try ProcessMaps.readFile("/sys/kernel/mm/ksm/full_scans").split(separator: "\n").first ?? "") ?? 0
      }
      put("1000", "pages_to_scan")
      put("1", "run")
      let before = try scans()
      let begun = Kernel.now()
      while try scans() < before + 4, Kernel.now() - begun < 10_000_000_000 { Kernel.pause(nanoseconds: 5_000_000) }
      put("0", "run")
      put("100", "pages_to_scan")
      try check(tracker.collect().isEmpty, "written by nobody")
      try region.store(UInt8(7), toByteOffset: 5 * 4096)
      try check(tracker.collect().runs, is: [5..<6])
      try space.close()
    }
  }

  @Test("K3: a userfaultfd whose number went to another region's is missed", arguments: [1, 2])
  func descriptorOfAnotherRegion(_ closed: Int) async {
    await #expect(processExitsWith: .success) { [closed = closed as Int] in
      ct_deadline(30)
      let tracked = try Tracked(.handlerThread, configure: { $0.failurePolicy = .failRegion })
      let other = try tracked.space.map(.anonymous(hugePages: .never), pages: 8)
      check(ct_close_userfaultfds(CInt(closed), 0), is: CInt(closed))
      let tracker = try other.trackWrites(.handlerThread)
      if closed == 1 {
        let writer = HostThread { ct_store(tracked.address(of: 3), 9) }
        try other.fill(with: 2)
        writer.join()
        try check(tracked.tracker.collect().runs, is: [3..<4])
      } else {
        var code: PinError.Code?
        while code == nil { code = Self.code { _ = try tracked.tracker.collect() } }
        check(code, is: .handlerLost)
        try other.fill(with: 2)
      }
      try check(tracker.collect().count, is: 8)
      try tracked.space.close()
    }
  }

  @Test("Patience may be as long as one likes", arguments: [1e300, 1e-300]) func patience(_ seconds: Double) async {
    await #expect(processExitsWith: .success) { [seconds = seconds as Double] in
      let tracked = try Tracked(.handlerThread, configure: { $0.patience = seconds })
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("A set that was not made here is checked before it is believed") func hostileSets() async {
    await #expect(processExitsWith: .success) {
      check(Self.code { _ = try DirtySet(pageCount: .max, bitmap: []) }, is: .invalidArgument)
    }
  }
}
