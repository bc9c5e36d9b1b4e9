import CTestSupport
import Testing

@testable import PinKit

@Suite(
  "I/O in flight", .serialized,
  .enabled(if: SlowDevice.isAvailable, "needs /dev/fuse and the right to mount, for a device that is slow on demand"))
struct IOInFlightTests {
  private static let loose = Combination.all.filter { $0.subject == .anonymous || $0.subject == .pool }
  private static let synchronous = Combination.all.filter { $0.mechanism != .asynchronous }
  private static let byte = SlowDevice.byte

  /// Two small pages, wherever they lie.
  private func memory(_ region: Region, _ page: Int) -> AddressRange {
    AddressRange(start: region.addresses(of: page).start, count: 8192)
  }

  @Test("What no mechanism sees: an O_DIRECT read that was in flight when its pages were armed", arguments: loose)
  func unseen(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    let device = try SlowDevice()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let tracker = try region.trackWrites(combination.mechanism)
      for page in 2..<4 { try region.touch(page) }
      let finish = try device.read(into: memory(region, 2))
      #expect(try tracker.collect().runs == [2..<4])
      #expect(region.peek(2) == 1)
      #expect(try finish() == 8192)
      #expect(region.peek(2) == Self.byte)
      #expect(try tracker.collect().isEmpty, "if this fails, the kernel has learned to tell: say so in the book")
      try tracker.stop()
    }
    try space.close()
  }

  @Test(
    "P9/W5: inside the bracket every collection has its pages, and so has the first after it",
    arguments: Combination.all)
  func collections(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    let device = try SlowDevice()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let tracker = try region.trackWrites(combination.mechanism)
      let pages = region.pageSize == 4096 ? 2..<4 : 2..<3
      let io = try region.beginIO(into: pages)
      #expect(io.pages == pages)
      // A collection before it is submitted: the system call finds the pages open.
      #expect(try tracker.collect().runs == [pages])
      let finish = try device.read(into: memory(region, 2))
      for _ in 0..<2 { #expect(try tracker.collect().runs == [pages]) }
      #expect(try finish() == 8192)
      #expect(try tracker.collect().runs == [pages])
      #expect(region.peek(2) == Self.byte)
      io.complete()
      #expect(try tracker.collect().runs == [pages])
      #expect(try tracker.collect().isEmpty)
      // The bytes that it hands out are the same ones.
      let again = try unsafe region.withIOInFlight(into: pages) { bytes in
        let memory = AddressRange(start: UInt(bitPattern: bytes.baseAddress), count: 8192)
        #expect(bytes.count == pages.count * region.pageSize)
        let finish = try device.read(into: memory)
        #expect(try tracker.collect().runs == [pages])
        return try finish()
      }
      #expect(again == 8192)
      #expect(try tracker.collect().runs == [pages])
      #expect(try tracker.collect().isEmpty)
      #expect(try !region.mayBePinned(2))
      try tracker.stop()
    }
    try space.close()
  }

  @Test("P9/W6: a snapshot in between has the bytes of its moment", arguments: synchronous)
  func snapshots(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    let device = try SlowDevice()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let first = try region.snapshot(.init(mechanism: combination.mechanism))
      let io = try region.beginIO(into: 2..<4)
      let finish = try device.read(into: memory(region, 2))
      let during = try region.snapshot()
      #expect(try finish() == 8192)
      io.complete()
      let after = try region.snapshot()
      #expect(try byte(2, of: first) == 1 && byte(2, of: during) == 1 && byte(2, of: after) == Self.byte)
      #expect(try after.changes(since: during).contains(2) && during.changes(since: first).contains(2))
      #expect(first.failure == nil && during.failure == nil && after.failure == nil)
      for snapshot in [first, during, after] { snapshot.close() }
    }
    try space.close()
  }

  private func byte(_ page: Int, of snapshot: Snapshot) throws -> UInt8 {
    var bytes = [UInt8](repeating: 0, count: snapshot.pageSize)
    try unsafe bytes.withUnsafeMutableBytes { try unsafe snapshot.copy(page..<page + 1, into: $0) }
    return bytes[0]
  }

  @Test("P9: a clone in between has the bytes of its moment, and nothing drops the pages", arguments: Mechanisms.synchronous)
  func clones(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let device = try SlowDevice()
    let region = try space.map(.pool, pages: 8)
    try region.fill(with: 1)
    let io = try region.beginIO(into: 2..<4)
    let finish = try device.read(into: memory(region, 2))
    let clone = try region.clone(mechanism: mechanism)
    #expect(errorCode { try region.discard(2..<3) } == .pinned)
    #expect(try finish() == 8192)
    io.complete()
    #expect(clone.peek(2) == 1 && region.peek(2) == Self.byte && region.peek(3) == Self.byte)
    try clone.unmap()
    try space.close()
  }

  @Test("P9: what cannot be had is refused before anything is submitted, and nothing stays pinned") func refused() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 8)
    try region.protect(4..<5)
    #expect(errorCode { _ = try region.beginIO(into: 2..<6) } == .accessDenied)
    #expect(errorCode { _ = try region.beginIO(into: 7..<9) } == .outOfBounds)
    #expect(errorCode { try unsafe region.withIOInFlight(into: 3..<3) { _ in } } == .invalidArgument)
    #expect((0..<8).allSatisfy { !region.table[$0].isPinned })
    struct Trouble: Error {}
    #expect(throws: Trouble.self) { try unsafe region.withIOInFlight(into: 1..<2) { _ in throw Trouble() } }
    #expect(!region.table[1].isPinned)
    try space.close()
  }
}
