import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Bytes that go, or change, while they are being kept for a snapshot.
@Suite("Snapshots that lose bytes while they are kept") struct SnapshotLossOrderTests {
  private static let page = 70
  private static let alone = page..<page + 1

  private static func snapshot(
    _ mechanism: WriteTracking.Mechanism
  ) throws -> (space: AddressSpace, region: Region, snapshot: Snapshot) {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 128)
    try region.write(version: 1, to: page - 1..<page + 2)
    return (space, region, try region.snapshot(.init(mechanism: mechanism)))
  }

  /// mremap(2), which Swift's Glibc does not declare.
  private typealias Remap =
    @convention(c) (UnsafeMutableRawPointer?, Int, Int, Int32, UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer?

  /// Moves the pages of a region somewhere else, and leaves empty ones in their place. False if it cannot.
  private static func moveAway(_ range: AddressRange) -> Bool {
    guard let symbol = unsafe dlsym(nil, "mremap") else { return false }
    let remap = unsafe unsafeBitCast(symbol, to: Remap.self)
    // MREMAP_MAYMOVE | MREMAP_DONTUNMAP
    let moved = unsafe remap(UnsafeMutableRawPointer(bitPattern: range.start), range.count, range.count, 1 | 4, nil)
    return UInt(bitPattern: moved) != UInt.max
  }

  @Test("W6: where other code moves the memory while a page is kept, the snapshot does not hold what was left there")
  func moved() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      // When its one page is kept nothing is owed any more.
      let region = try space.map(.anonymous(hugePages: .never), pages: 1)
      try region.write(version: 1, to: 0..<1)
      let snapshot = try region.snapshot(.init(mechanism: .inPlace))
      let capture = HeldThreads(at: .capturing, 0...0)
      let message = HeldThreads(at: .remapping, 0...0)
      let writer = TestThread { try region.write(version: 2, to: 0..<1) }
      check(capture.first(), "nobody keeps the page")
      let mover = TestThread { check(Self.moveAway(region.addresses), "the memory was not moved") }
      // The memory has moved, the message is read, and the region has not failed yet.
      check(message.first(), "nobody heard of it")
      capture.letGo()
      try writer.join()
      message.letGo()
      try mover.join()
      let found = code { _ = try snapshot.read(0) }
      check(found == .snapshotLost || found == .mappingChanged, "\(found?.description ?? "it was read")")
      check(snapshot.failure != nil, "the snapshot does not say that it is lost")
      for point in [TestHooks.Point.capturing, .remapping] { TestHooks.set(point, nil) }
      snapshot.close()
      try space.close()
    }
  }

  @Test(
    "W6: a page that other code drops before the sweep looks is not taken for one of zeros",
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func sweep(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let (space, region, snapshot) = try Self.snapshot(mechanism)
      let held = HeldThreads(at: .removing, Self.page...Self.page)
      let dropper = TestThread { try Memory.advise(region.addresses(of: Self.alone), .dontNeed) }
      check(held.first(), "nobody heard of it")
      try dropper.join()
      // The page is gone, and who heard of it has not said so: this is what the sweep does first.
      let set = region.attachments.find(SnapshotSet.self)!
      let store = try snapshot.openStore("sweep")
      let present = set.populated(for: store)
      check(!present.contains { $0.contains(Self.page) }, "the page is there")
      check(store.captured.contains(Self.page), "the sweep has not seen that it is not")
      held.letGo()
      check(code { _ = try snapshot.read(Self.page) }, is: .snapshotLost)
      TestHooks.set(.removing, nil)
      snapshot.close()
      try space.close()
    }
  }

  private static func hasFailed(_ protection: RegionProtection) -> Bool {
    protection.fail(.refused)
    // From then on nothing keeps a writer from writing.
    return spin(forAtMost: 120) {
      unsafe protection.domain.pointee.delivery.load(ordering: .sequentiallyConsistent) == .none
    }
  }

  private static func isNobodyKeeping(_ protection: RegionProtection) -> Bool {
    let ended = unsafe protection.domain.pointee.keepsEnded.load(ordering: .sequentiallyConsistent)
    return unsafe protection.domain.pointee.keepsBegun.load(ordering: .sequentiallyConsistent) == ended
  }

  @Test(
    "W6, K3: bytes that are copied after their region has failed are not taken for the old ones",
    arguments: Mechanisms.synchronous)
  func failure(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let (space, region, snapshot) = try Self.snapshot(mechanism)
      let protection = region.attachments.find(RegionProtection.self)!
      let held = HeldThreads(at: .capturing, Self.page...Self.page)
      let writer = TestThread { try region.write(version: 2, to: Self.alone) }
      check(held.first(), "nobody keeps the page")
      check(Self.hasFailed(protection), "the protection stays")
      try region.write(version: 3, to: Self.alone)
      held.letGo()
      try writer.join()
      // A reader thread's writer has been woken before.
      check(spin(forAtMost: 120) { Self.isNobodyKeeping(protection) }, "the page is never kept")
      let found = code { _ = try snapshot.read(Self.page) }
      check(found == .snapshotLost || found == .handlerLost, "\(found?.description ?? "it was read")")
      TestHooks.set(.capturing, nil)
      snapshot.close()
      try space.close()
    }
  }

  @Test(
    "W6, K3: nor does a sweep take pages for ones of zeros that are looked at after their region has failed",
    arguments: Mechanisms.synchronous)
  func sweepAfterFailure(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let (space, region, snapshot) = try Self.snapshot(mechanism)
      let protection = region.attachments.find(RegionProtection.self)!
      check(Self.hasFailed(protection), "the protection stays")
      // Nobody hears of it any more.
      try Memory.advise(region.addresses(of: Self.alone), .dontNeed)
      let set = region.attachments.find(SnapshotSet.self)!
      let present = set.populated(for: try snapshot.openStore("sweep"))
      check(!present.contains { $0.contains(Self.page) }, "the page is there")
      let found = code { _ = try snapshot.read(Self.page) }
      check(found == .snapshotLost || found == .handlerLost, "\(found?.description ?? "it was read")")
      snapshot.close()
      try space.close()
    }
  }
}
