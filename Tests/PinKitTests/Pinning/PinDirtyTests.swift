import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("Pins, trackers, snapshots and clones", .serialized) struct PinDirtyTests {
  @Test(
    "P6: a page under a pin for writing is in every collection until after it is unpinned", arguments: Combination.all)
  func collections(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let tracker = try region.trackWrites(combination.mechanism)
      let other = try region.trackWrites()
      let pin = try region.pin(2..<4, .write)
      let reading = try region.pin(5..<6)
      for _ in 0..<3 { #expect(try tracker.collect().runs == [2..<4]) }
      try unsafe pin.withUnsafeMutableBytes { unsafe $0[1] = 8 }
      pin.unpin()
      #expect(try tracker.collect().runs == [2..<4])
      #expect(try tracker.collect().isEmpty)
      #expect(try other.collect().runs == [2..<4])
      reading.markDirty()
      #expect(try tracker.collect().runs == [5..<6])
      #expect(try tracker.collect().isEmpty)
      reading.unpin()
      #expect(try tracker.collect().isEmpty)
      // Nobody's, as nobody tracked.
      try tracker.stop()
      try other.stop()
      try region.pin(6..<7, .write).unpin()
      let late = try region.trackWrites(combination.mechanism)
      #expect(try late.collect().isEmpty)
      try late.stop()
    }
    try space.close()
  }

  @Test(
    "P8, P9: a collection leaves a pinned page open, however close to it others are protected again",
    arguments: [WriteTracking.Mechanism.inPlace, .mprotect])
  func neighbours(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 16)
    let tracker = try region.trackWrites(mechanism)
    let pin = try region.pin(5..<6, .write)
    for page in [3, 4, 6, 9] { region.poke(7, page) }
    #expect(try tracker.collect().runs == [3..<7, 9..<10])
    // The kernel's own write could not resolve a fault.
    let zeros = unsafe open("/dev/zero", O_RDONLY | O_CLOEXEC)
    defer { close(zeros) }
    #expect(unsafe read(zeros, UnsafeMutableRawPointer(bitPattern: region.addresses.start + 5 * 4096), 4096) == 4096)
    for page in [3, 4, 6, 9] {
      #expect(unsafe read(zeros, UnsafeMutableRawPointer(bitPattern: region.addresses.start + UInt(page) * 4096), 1) == -1)
    }
    pin.unpin()
    try tracker.stop()
    try space.close()
  }

  private static let synchronous = Combination.all.filter { $0.mechanism != .asynchronous }

  // Only there a processor goes around the protection as a device does.
  @Test(
    "P6, W6: what is written through a pin after the moment of a snapshot is among the changes of the next",
    arguments: synchronous.filter { $0.subject == .pool })
  func unpinnedAfterTheMoment(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let tracker = try region.trackWrites(combination.mechanism)
      let first = try region.snapshot(.init(mechanism: combination.mechanism))
      try #require(try tracker.collect().isEmpty)
      let pin = Mutex<Pin?>(try region.pin(2..<3, .write))
      let other = try region.pin(4..<5, .write)
      // The page is copied: what its device writes from now on is no part of the snapshot.
      TestHooks.set(.capturing) { page in
        guard page == 4 else { return }
        pin.withLock { pin in
          do { try unsafe pin?.withUnsafeMutableBytes { unsafe $0[0] = 9 } } catch { Issue.record("\(error)") }
          pin = nil
        }
      }
      defer { TestHooks.set(.capturing, nil) }
      let second = try region.snapshot()
      TestHooks.set(.capturing, nil)
      let third = try region.snapshot()
      #expect(try self.first(of: 2, in: second) == 1 && self.first(of: 2, in: third) == 9)
      #expect(try third.changes(since: second).contains(2))
      #expect(try third.changes(since: first).contains(2))
      #expect(try tracker.collect().contains(2))
      other.unpin()
      for snapshot in [first, second, third] { snapshot.close() }
    }
    try space.close()
  }

  @Test("P6: a snapshot has the bytes of its moment, also of pages that are written through pins", arguments: synchronous)
  func snapshots(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let pin = try region.pin(2..<4, .write)
      let older = try region.snapshot(.init(mechanism: combination.mechanism))
      #expect(older.capturedBytes == 2 * region.pageSize)
      // As a device would: by the region's own address where there is no other, and then by a fault.
      try unsafe pin.withUnsafeMutableBytes { unsafe $0[0] = 2 }
      let newer = try region.snapshot(.init(mechanism: combination.mechanism))
      try unsafe pin.withUnsafeMutableBytes { unsafe $0[0] = 3 }
      #expect(try first(of: 2, in: older) == 1 && first(of: 2, in: newer) == 2)
      #expect(try first(of: 3, in: older) == 1 && first(of: 4, in: newer) == 1)
      #expect(try newer.changes(since: older).runs == [2..<4])
      pin.unpin()
      let last = try region.snapshot()
      #expect(last.capturedBytes == 0)
      #expect(try last.changes(since: newer).runs == [2..<4])
      for snapshot in [older, newer, last] { snapshot.close() }
    }
    try space.close()
  }

  private func first(of page: Int, in snapshot: Snapshot) throws -> UInt8 {
    var bytes = [UInt8](repeating: 0, count: snapshot.pageSize)
    try unsafe bytes.withUnsafeMutableBytes { try unsafe snapshot.copy(page..<page + 1, into: $0) }
    return bytes[0]
  }

  @Test("P6: a snapshot without room for the pinned pages is refused, and nothing is left of it", arguments: [false, true])
  func noRoom(_ hasOlder: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    try region.fill(with: 1)
    let older = hasOlder ? try region.snapshot() : nil
    let pin = try region.pin(2..<4, .write)
    try region.store(UInt8(4), toByteOffset: 6 * 4096)
    #expect(errorCode { _ = try region.snapshot(.init(captureLimit: 4096)) } == .limitReached)
    try region.store(UInt8(5), toByteOffset: 7 * 4096)
    pin.unpin()
    if let older {
      #expect(try first(of: 2, in: older) == 1 && first(of: 6, in: older) == 1 && first(of: 7, in: older) == 1)
      #expect(older.failure == nil)
      let next = try region.snapshot()
      #expect(try next.changes(since: older).runs == [2..<4, 6..<8])
      next.close()
      older.close()
    } else {
      #expect(try region.protection().slotIndex == nil, "the protection stayed")
    }
    try space.close()
  }

  @Test("P6: a clone keeps the bytes of its moment where a pin goes on writing", arguments: [true, false])
  func clones(_ wasCloned: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    try region.fill(with: 1)
    let before = wasCloned ? try region.clone() : nil
    // The first is pinned under the lock, the second without.
    let pin = try region.pin(2..<3, .write)
    let again = try region.pin(2..<4, .write)
    let clone = try region.clone()
    try unsafe again.withUnsafeMutableBytes { bytes in
      unsafe bytes[0] = 2
      unsafe bytes[4096] = 2
    }
    for page in 2..<4 {
      #expect(try clone.load(fromByteOffset: page * 4096, as: UInt8.self) == 1)
      #expect(try region.load(fromByteOffset: page * 4096, as: UInt8.self) == 2)
      // W4: the owner stays with the frame that it has pinned.
      try region.store(UInt8(3), toByteOffset: page * 4096)
      let seen = unsafe again.withUnsafeBytes { unsafe $0[(page - 2) * 4096] }
      #expect(seen == 3)
    }
    pin.unpin()
    again.unpin()
    for other in [clone, before].compactMap({ $0 }) { try other.unmap() }
    try space.close()
  }

  @Test("P4: the index of pinned pages forgets those that are not pinned any more, and no other")
  func index() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 512)
    let tracker = try region.trackWrites()
    let kept = try region.pin(100..<103)
    let written = try region.pin(300..<301, .write)
    try region.pin(0..<512).unpin()
    #expect(try tracker.collect().runs == [300..<301])
    var left: [Int] = []
    region.table.pinned.forEachRun { left += $0 }
    #expect(left == [100, 101, 102, 300])
    #expect(region.table.pinnedRuns(in: 0..<512) == [100..<103, 300..<301])
    kept.unpin()
    written.unpin()
    try space.close()
  }
}
