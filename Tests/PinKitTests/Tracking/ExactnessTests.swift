import CTestSupport
import Testing

@testable import PinKit

@Suite("Exact sets", .serialized) struct ExactnessTests {
  private func write(_ region: Region, _ pages: [Int]) { for page in pages { region.poke(9, page) } }

  @Test("Exact sets are had beside fault-around, and after it", arguments: Mechanisms.synchronous)
  func besideFaultAround(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 64)
    let loose = try region.trackWrites(mechanism, options: .init(faultAround: .fixed(8)))
    write(region, [0])
    #expect(try loose.collect().runs == [0..<8])
    write(region, [16])
    let exact = try region.trackWrites()
    write(region, [32, 40])
    #expect(try exact.collect() == DirtySet(pageCount: 64, runs: [32..<33, 40..<41]))
    let both = try loose.collect()
    #expect(both.runs == [16..<24, 32..<33, 40..<41] && both.exactPages.contains(32))
    // Each as it wants again, once the other is gone.
    try exact.stop()
    write(region, [0])
    #expect(try loose.collect().runs == [0..<8])
    let again = try region.trackWrites()
    try loose.stop()
    write(region, [0, 10])
    #expect(try again.collect() == DirtySet(pageCount: 64, runs: [0..<1, 10..<11]))
    try again.stop()
    try space.close()
  }

  @Test("A tracker that comes when only a snapshot is left gets what it asks for", arguments: Mechanisms.synchronous)
  func besideSnapshots(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 64)
    let loose = try region.trackWrites(mechanism, options: .init(faultAround: .fixed(8)))
    let snapshot = try region.snapshot()
    try loose.stop()
    let exact = try region.trackWrites()
    write(region, [1, 3])
    #expect(try exact.collect() == DirtySet(pageCount: 64, runs: [1..<2, 3..<4]))
    let error = #expect(throws: PinError.self) { _ = try region.trackWrites(options: .init(faultAround: .fixed(8))) }
    #expect(error?.code == .inUse && error?.description.contains("Another tracker of the region asked for") == true)
    try exact.stop()
    let other = try region.trackWrites(options: .init(faultAround: .fixed(4)))
    try other.stop()
    snapshot.close()
    try space.close()
  }

  @Test("Fault-around of a region over a store is refused for the reason that it has") func stores() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.file(UnrulyStore(pages: 8)), pages: 8)
    let error = #expect(throws: PinError.self) { _ = try region.trackWrites(options: .init(faultAround: .fixed(4))) }
    #expect(error?.code == .unsupported && error?.description.contains("over a store") == true)
    #expect(error?.description.contains("nother tracker") == false)
    let tracker = try region.trackWrites()
    write(region, [2])
    #expect(try tracker.collect() == DirtySet(pageCount: 8, runs: [2..<3]))
    try tracker.stop()
    try region.unmap()
    try space.close()
  }

  @Test(
    "A discard that a sealed memfd refuses leaves nothing in any set, and no snapshot is given up", arguments: Mechanisms.all
  )
  func sealedMemory(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let address = ct_map_sealed(8 * 4096)
    try #require(address != 0)
    let range = AddressRange(start: UInt(address), count: 8 * 4096)
    defer { Mapping.unmap(range) }
    let region = try space.adopt(range)
    try region.fill(with: 7)
    let tracker = try region.trackWrites(mechanism)
    #expect(errorCode { try region.discard(2..<4) } != nil)
    #expect(try tracker.collect().isEmpty)
    let snapshot = mechanism == .asynchronous ? nil : try region.snapshot()
    region.poke(8, 3)
    #expect(errorCode { try region.discard(2..<5) } != nil)
    #expect(try tracker.collect().runs == [3..<4])
    if let snapshot {
      var bytes = [UInt8](repeating: 0, count: 8 * 4096)
      try unsafe bytes.withUnsafeMutableBytes { try unsafe snapshot.copy(0..<8, into: $0) }
      #expect((0..<8).allSatisfy { bytes[$0 * 4096] == 7 } && snapshot.failure == nil)
      snapshot.close()
    }
    #expect(region.peek(2) == 7)
    try tracker.stop()
    try region.unmap()
    try space.close()
  }

  @Test(
    "Buffers, windows, registrations and brackets that are refused leave nothing in any set",
    arguments: Mechanisms.synchronous)
  func refusedPins(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 16)
    try region.fill(with: 1)
    try region.protect(10..<11)
    let tracker = try region.trackWrites(mechanism)
    #expect(errorCode { _ = try FixedBuffers(region, [0..<2, 9..<12]) } == .accessDenied)
    #expect(errorCode { _ = try FixedBuffers(region, [0..<2, 15..<17]) } == .outOfBounds)
    #expect(errorCode { _ = try FixedBuffers(region, Array(repeating: 0..<1, count: 16_385)) } == .unsupported)
    #expect(errorCode { _ = try unsafe region.register(8..<12) { _ in {} } } == .accessDenied)
    #expect(errorCode { _ = try region.beginIO(into: 8..<12) } == .accessDenied)
    let window = try DirectMapping(region, pages: 8..<12)
    #expect(errorCode { try unsafe window.withBytes { _ in } } == .accessDenied)
    window.close()
    #expect(try tracker.collect().isEmpty)
    #expect((0..<16).allSatisfy { !region.table[$0].isPinned })
    try tracker.stop()
    try space.close()
  }

  @Test("A snapshot whose limit has no room for a pinned page that cannot be read says that it is the limit")
  func limitOfHiddenPages() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 8)
    try region.fill(with: 1)
    let pin = try region.pin(2..<3, .write)
    try region.protect(2..<3, to: .none)
    for policy: SnapshotOptions.LimitPolicy in [.giveUp, .holdWriters] {
      #expect(errorCode { _ = try region.snapshot(.init(captureLimit: 0, atLimit: policy)) } == .limitReached)
    }
    pin.unpin()
    try space.close()
  }
}
