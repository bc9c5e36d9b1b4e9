import Testing

@testable import PinKit

/// What every mechanism promises alike.
@Suite("Write tracking") struct WriteTrackerTests {
  @Test("K1/W5: a collection holds exactly the pages that were written", arguments: Mechanisms.all)
  func collectsExactly(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace()
    let region = try space.map(.anonymous(hugePages: .never), pages: 256)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    #expect(try tracker.collect().isEmpty)
    for page in [3, 4, 5, 100, 255] { try region.store(UInt8(7), toByteOffset: page * region.pageSize + 11) }
    let dirty = try tracker.collect()
    #expect(dirty.runs == [3..<6, 100..<101, 255..<256])
    #expect(dirty.isExact)
    #expect(try tracker.collect().isEmpty)
    try region.store(UInt8(8), toByteOffset: 4 * region.pageSize)
    #expect(try tracker.collect().runs == [4..<5])
    #expect(try region.load(fromByteOffset: 4 * region.pageSize, as: UInt8.self) == 8)
    try tracker.stop()
    try region.unmap()
    try space.close()
  }
}
