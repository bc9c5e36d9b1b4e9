import CTestSupport
import Testing

@testable import PinKit

@Suite("What the fault path may not do") struct AllocationTests {
  @Test(
    "K2: serving faults allocates nothing: tracking, copying, keeping for a snapshot, telling a subscriber",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has an allocator of its own"),
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace, .mprotect])
  func nothing(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      // The first time the runtime makes what it knows of types, in a build without optimization.
      try AllocationTests.faults(mechanism)
      ct_watch_allocations { Kernel.isInFaultPath ? 1 : 0 }
      try AllocationTests.faults(mechanism)
      let count = ct_watched_allocations()
      ct_watch_allocations { 0 }
      check(count, is: 0)
    }
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
    try space.close()
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
