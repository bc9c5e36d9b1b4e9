import CTestSupport
import SystemPackage
import Testing

@testable import PinKit
@testable import PinKitCrypto

@Suite("What the fault path may not do") struct AllocationTests {
  @Test(
    "K2: serving faults allocates nothing: tracking, copying, keeping for a snapshot, telling a subscriber",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has an allocator of its own"),
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace, .mprotect])
  func nothing(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_watch_allocations { Kernel.isInFaultPath ? 1 : 0 }
      try AllocationTests.faults(mechanism)
      let count = ct_watched_allocations()
      ct_watch_allocations { 0 }
      check(count, is: 0)
      check(ct_watched_errors(), is: 0)
    }
  }

  @Test(
    "The counter of the test above sees every way to allocate, and errors, and nothing elsewhere",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has an allocator of its own"))
  func counter() async {
    await #expect(processExitsWith: .success) {
      ct_watch_allocations { Kernel.isInFaultPath ? 1 : 0 }
      func counted(_ name: String, _ body: () -> Void) {
        for isInside in [false, true] {
          let before = ct_watched_allocations()
          if isInside { Kernel.enterFaultPath() }
          body()
          if isInside { Kernel.leaveFaultPath() }
          check(ct_watched_allocations() - before, is: isInside ? 1 : 0, name)
        }
      }
      for kind in CInt(0)..<6 { counted("way \(kind)") { check(ct_allocate(kind) == 1, "there is no such way") } }
      check(ct_allocate(6), is: 0)
      for alignment in [1, 16, 64, 4096] {
        counted("alignment \(alignment)") {
          unsafe UnsafeMutableRawPointer.allocate(byteCount: 100, alignment: alignment).deallocate()
        }
      }
      // The runtime tells its host of an error, and that may allocate, whatever the error is.
      for isInside in [false, true] {
        let before = ct_watched_errors()
        if isInside { Kernel.enterFaultPath() }
        do throws(Small) { throw Small() } catch {}
        if isInside { Kernel.leaveFaultPath() }
        check(ct_watched_errors() - before, is: isInside ? 1 : 0)
      }
      ct_watch_allocations { 0 }
    }
  }

  @Test(
    "K2: serving faults of a region over a store, and of one with sealed pages, allocates nothing",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has an allocator of its own"), arguments: [true, false])
  func storesAndSeals(isQuick: Bool) async {
    await #expect(processExitsWith: .success) { [isQuick = isQuick as Bool] in
      ct_deadline(300)
      let directory = try ImageDirectory()
      ct_watch_allocations { Kernel.isInFaultPath ? 1 : 0 }
      for turn in 0..<2 {
        try AllocationTests.stored(QuietStore(pages: 600, isQuick: isQuick))
        try AllocationTests.sealed(isQuick ? AESGCMSealer() : QuietSealer())
        try AllocationTests.stored(FileStore(path: directory("\(turn)"), creating: 600 * 4096))
      }
      let count = ct_watched_allocations()
      ct_watch_allocations { 0 }
      check(count, is: 0)
      // Those of the sealer's library, which says by one that a page was changed.
      check(ct_watched_errors(), is: isQuick ? 16 : 0)
    }
  }

  private struct Small: Error {}

  private static func stored(_ store: any PageStore) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.file(store, fillAround: .block(4)), pages: 600)
    let subscription = try region.subscribe(Silent())
    // Read first, written first, and written again after a flush and after a reclaim.
    for page in stride(from: 0, to: 600, by: 3) { _ = region.peek(page) }
    for page in 0..<600 { region.poke(7, page) }
    let snapshot = try region.snapshot()
    for page in 0..<300 { region.poke(8, page) }
    snapshot.close()
    try region.flush()
    for page in 0..<600 { region.poke(9, page) }
    try region.flush()
    _ = try region.reclaim(0..<300)
    for page in 0..<300 { region.poke(10, page) }
    subscription.remove()
    try space.close()
  }

  private static func sealed(_ sealer: any PageSealer) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 600)
    try region.setSealer(sealer)
    try region.fill(with: 5)
    let subscription = try region.subscribe(Silent())
    try region.seal(0..<600)
    let snapshot = try region.snapshot()
    for page in 0..<300 { _ = region.peek(page) }
    for page in 300..<600 { region.poke(6, page) }
    snapshot.close()
    try region.seal(0..<600)
    if sealer is AESGCMSealer {
      // On a thread on which none has failed before.
      for page in 0..<8 {
        try region.tamper(page)
        checkSystemCallFails(at: UInt64(region.addresses.start) + UInt64(page * 4096))
      }
      check(space.statistics.poisonedPages, is: 8)
    }
    subscription.remove()
    try space.close()
  }

  /// Pages of zeros, whatever is written to them.
  private final class QuietStore: PageStore {
    let geometry: StoreGeometry
    private let isQuick: Bool
    init(pages: Int, isQuick: Bool) {
      geometry = StoreGeometry(byteCount: pages * 4096)
      self.isQuick = isQuick
    }
    func read(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) throws(PinError) {
      _ = unsafe memory.initializeMemory(as: UInt8.self, repeating: 0)
    }
    func readNow(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) -> Bool {
      if isQuick { _ = unsafe memory.initializeMemory(as: UInt8.self, repeating: 0) }
      return isQuick
    }
    func write(_ transfers: [PageTransfer]) -> [PinError?] { transfers.map { _ in nil } }
    func pageMakeWritableNow(_ pages: Range<Int>) -> Bool { isQuick }
    func flush() throws(PinError) {}
  }

  /// Turns every bit around.
  private struct QuietSealer: PageSealer {
    let recordSize = 8
    private func turn(_ page: UnsafeMutableRawBufferPointer) {
      var offset = 0
      while offset < page.count {
        let word = unsafe page.load(fromByteOffset: offset, as: UInt64.self)
        unsafe page.storeBytes(of: ~word, toByteOffset: offset, as: UInt64.self)
        offset += 8
      }
    }
    func seal(
      _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeMutableRawBufferPointer
    ) throws(PinError) { unsafe turn(page) }
    func open(
      _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeRawBufferPointer
    ) throws(PinError) { unsafe turn(page) }
  }

  fileprivate static func faults(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, pages: 600, mechanism)
    let tracker = try region.trackWrites(mechanism)
    let subscription = try clone.subscribe(Silent())
    let snapshot = try region.snapshot()
    let write = {
      for page in 0..<600 {
        for region in [region, clone] { ct_store(UInt64(region.addresses.start) + UInt64(page * 4096), 7) }
      }
    }
    write()
    try region.discard(3..<9)
    _ = try tracker.collect()
    _ = try clone.clone()
    write()
    subscription.remove()
    snapshot.close()
    try adopted(space, mechanism)
    if mechanism == .mprotect { try scarce(space) }
    try space.close()
  }

  /// Where there is no mapping left to open a page in its place.
  private static func scarce(_ space: AddressSpace) throws {
    let (region, clone) = try sharedPair(space, pages: 64, .mprotect)
    try clone.unmap()
    let before = space.counters[.copies]
    Injection.arm(.mprotect, .noMemory, times: 8)
    region.poke(7, 30)
    Injection.disarm()
    check(space.counters[.copies] > before, "it was opened all the same")
    try region.unmap()
  }

  /// The same for memory that is copied by the kernel, with pages of zeros, and guard pages where there are some.
  private static func adopted(_ space: AddressSpace, _ mechanism: WriteTracking.Mechanism) throws {
    let memory = try ForeignMemory(.adoptedAnonymous, pages: GuardPages.count)
    defer { memory.unmap() }
    let region = try space.adopt(memory.range)
    try region.write(version: 1, to: GuardPages.others.filter { $0 % 7 != 0 })
    if GuardPages.areKnown { GuardPages.install(memory.range) }
    let snapshot = try region.snapshot(.init(mechanism: mechanism))
    for page in GuardPages.others { ct_store(UInt64(memory.range.start) + UInt64(page * 4096), 7) }
    snapshot.close()
    try region.unmap()
  }

  final class Silent: MMUNotifier {}
}
