import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// A region that the program lets go of while pages of it are pinned.
@Suite("Pins that outlive their region") struct PinnedOrphanTests {
  /// In the last word of a region: what other code maps at its addresses, once they are free, does not end with it.
  private static let mark: UInt64 = 0x6f72_7068_616e_0001

  private static func leaveMark(_ region: Region) throws {
    try region.store(mark, toByteOffset: region.addresses.count - 8)
  }

  /// Whether the region's bytes can be had at its addresses.
  private static func isMapped(_ range: AddressRange) -> Bool {
    var word: UInt64 = 0
    let count = unsafe withUnsafeMutablePointer(to: &word) { unsafe Memory.copyChecked(range.end - 8, to: $0, count: 8) }
    return count == 8 && word == mark
  }

  @Test(
    "P7: the bytes stay with the pins of a region that is gone, and go with the last", arguments: [Backing.anonymous, .pool])
  func lastPin(_ backing: Backing) throws {
    let space = try AddressSpace.forTests()
    var region: Region? = try space.map(backing, pages: 16)
    let addresses = region!.addresses
    try region!.store(UInt64(7), toByteOffset: 3 * 4096)
    try Self.leaveMark(region!)
    let first = try region!.pin(2..<5, .write)
    let second = try region!.pin(4..<9)
    let isOwn = region!.frames == nil
    region = nil
    #expect(space.mappedRegions.isEmpty)
    // Of a pool the frames are what stays.
    #expect(Self.isMapped(addresses) == isOwn)
    unsafe first.withUnsafeBytes { #expect(unsafe $0.load(fromByteOffset: 4096, as: UInt64.self) == 7) }
    try unsafe first.withUnsafeMutableBytes { unsafe $0.storeBytes(of: 8, toByteOffset: 2 * 4096, as: UInt64.self) }
    first.unpin()
    #expect(Self.isMapped(addresses) == isOwn)
    unsafe second.withUnsafeBytes { #expect(unsafe $0.load(as: UInt64.self) == 8) }
    #expect(PinnedOrphans.memory(of: space).count == 1)
    second.unpin()
    #expect(!Self.isMapped(addresses))
    #expect(PinnedOrphans.memory(of: space).isEmpty)
    try space.close()
  }

  @Test("P7: a space is not closed over pins of a region that is gone, and names them; it waits for them if asked")
  func closing() async throws {
    let space = try AddressSpace.forTests()
    var region: Region? = try space.map(.anonymous, pages: 16)
    let pin = PinBox(try region!.pin(3..<5))
    region = nil
    do throws(PinError) {
      try space.close()
      Issue.record("closed over pins")
    } catch {
      #expect(error.code == .pinned && "\(error)".contains("3...4"))
    }
    #expect(errorCode { try space.close(whilePinned: .leaveFrames) } == .pinned)
    // Nothing has changed.
    try space.map(.anonymous, pages: 1).unmap()
    let closing = HostThread { try? space.close(whilePinned: .wait) }
    pin.drop()
    closing.join()
    #expect(errorCode { _ = try space.map(.anonymous, pages: 1) } == .unmapped)
  }

  @Test("P7: frames of a pool are left to pins of a region that is gone as the space closes")
  func leavingFrames() throws {
    let space = try AddressSpace.forTests()
    var region: Region? = try space.map(.pool, pages: 4)
    try region!.store(UInt64(9), toByteOffset: 4096)
    let pin = try region!.pin(1..<2)
    region = nil
    #expect(errorCode { try space.close() } == .pinned)
    try space.close(whilePinned: .leaveFrames)
    unsafe pin.withUnsafeBytes { #expect(unsafe $0.load(as: UInt64.self) == 9) }
    pin.unpin()
  }

  @Test("P7: what was left to its pins by name does not keep the space open, whether or not the region is held")
  func leftByName() throws {
    for isHeld in [true, false] {
      let space = try AddressSpace.forTests()
      var region: Region? = try space.map(.pool, pages: 4)
      let pin = try region!.pin(1..<2, .write)
      try region!.unmap(whilePinned: .leaveFrames)
      if !isHeld { region = nil }
      try space.close()
      try unsafe pin.withUnsafeMutableBytes { unsafe $0[0] = 5 }
      pin.unpin()
      #expect(PinnedOrphans.memory(of: space).isEmpty)
    }
  }

  @Test("P7: many pins of a region that is gone are let go of in any order, and each of them once")
  func many() throws {
    let space = try AddressSpace.forTests()
    for isReversed in [true, false] {
      var region: Region? = try space.map(.anonymous, pages: 20_000)
      let addresses = region!.addresses
      try Self.leaveMark(region!)
      var boxes = try (0..<20_000).map { PinBox(try region!.pin($0..<$0 + 1)) }
      region = nil
      if isReversed { boxes.reverse() }
      for box in boxes.dropLast() { box.drop() }
      #expect(Self.isMapped(addresses))
      boxes[boxes.count - 1].drop()
      #expect(!Self.isMapped(addresses))
    }
    try space.close()
  }

  @Test("P7: a region over a store is written back after the last of its pins, with what came through it")
  func stored() throws {
    let space = try AddressSpace.forTests()
    let store = UnrulyStore(pages: 8) { _ in 0 }
    var region: Region? = try space.map(.file(store), pages: 8)
    let pin = try region!.pin(2..<3, .write)
    region = nil
    try unsafe pin.withUnsafeMutableBytes { unsafe $0[5] = 77 }
    #expect(store.durableByte(2, at: 5) == 0)
    pin.unpin()
    #expect(store.durableByte(2, at: 5) == 77)
    try space.close()
  }

  @Test("P7: who is taking the last pin off as the region goes ends it")
  func besideTheEnd() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(280)
      let space = try AddressSpace()
      var region: Region? = try space.map(.pool, pages: 4)
      let box = PinBox(try region!.pin(1..<2, .write))
      let held = HeldThreads(at: .unpinning, 1...1)
      let unpinning = HostThread { box.drop() }
      check(held.first(), "nobody unpins")
      region = nil
      check(PinnedOrphans.memory(of: space).count, is: 1)
      held.letGo()
      unpinning.join()
      TestHooks.set(.unpinning, nil)
      check(PinnedOrphans.memory(of: space).count, is: 0)
      try space.close()
    }
  }

  @Test(
    "P4, P7: threads that drop pins beside the end of their region: the bytes stay as long as one of them has a pin, and not longer"
  )
  func race() throws {
    let space = try AddressSpace.forTests()
    for round in 0..<200 {
      let holder = RegionBox(try space.map(round % 2 == 0 ? .anonymous : .pool, pages: 64))
      let addresses = holder.region!.addresses
      try Self.leaveMark(holder.region!)
      let boxes = try (0..<3).map { PinBox(try holder.region!.pin($0..<$0 + 2, .write)) }
      let gate = Shared()
      var threads = boxes.map { box in
        HostThread {
          gate.add()
          while gate.value < 4 {}
          box.fill(UInt8(truncatingIfNeeded: round))
          box.drop()
        }
      }
      threads.append(
        HostThread {
          gate.add()
          while gate.value < 4 {}
          holder.region = nil
        })
      for thread in threads { thread.join() }
      #expect(!Self.isMapped(addresses), "round \(round)")
    }
    #expect(PinnedOrphans.memory(of: space).isEmpty)
    try space.close()
  }
}

/// A pin that several threads can reach.
private final class PinBox: @unchecked Sendable {
  private var pin: Pin?
  init(_ pin: consuming Pin) { self.pin = consume pin }
  func drop() { pin = nil }
  func fill(_ byte: UInt8) {
    try? unsafe pin?.withUnsafeMutableBytes { bytes in for index in bytes.indices { unsafe bytes[index] = byte } }
  }
}

private final class RegionBox: @unchecked Sendable {
  var region: Region?
  init(_ region: Region) { self.region = region }
}
