import Testing

@testable import PinKit

@Suite("Images of snapshots")
struct SnapshotImageTests {
  private static let pages = 3000

  private static func value(_ region: Region, _ page: Int) throws -> UInt64 {
    try region.load(fromByteOffset: page * region.pageSize)
  }

  @Test("W6: a full image and increments restore each moment", arguments: [Backing.anonymous, .pool])
  func chain(_ backing: Backing) throws {
    let folder = try ImageDirectory()
    let space = try AddressSpace()
    defer { try? space.close() }
    let region = try space.map(backing, pages: Self.pages)
    for page in stride(from: 0, to: Self.pages, by: 2) { try region.store(UInt64(page + 1), toByteOffset: page * 4096) }
    let first = try region.snapshot()
    for page in stride(from: 0, to: Self.pages, by: 101) {
      try region.store(UInt64(70_000 + page), toByteOffset: page * 4096)
    }
    let full = try first.write(to: folder("full"))
    let second = try region.snapshot()
    try region.discard(100..<200)
    try region.store(UInt64(5), toByteOffset: 150 * 4096)
    let third = try region.snapshot()
    for page in 0..<Self.pages { try region.store(UInt64.max, toByteOffset: page * 4096) }
    let increment = try second.write(to: folder("second"), since: first, releasing: true)
    #expect(increment.storedPages.count < 100)
    try third.write(to: folder("third"), since: second)
    #expect(throws: PinError.self) { try second.read(0) }
    for snapshot in [first, second, third] { snapshot.close() }

    func expect(_ body: (Int) -> UInt64, _ what: Comment) throws {
      for page in 0..<Self.pages where try Self.value(region, page) != body(page) {
        Issue.record("page \(page) of \(what) is \(try Self.value(region, page))")
        return
      }
    }
    let atFirst: (Int) -> UInt64 = { $0 % 2 == 0 ? UInt64($0 + 1) : 0 }
    let atSecond: (Int) -> UInt64 = { $0 % 101 == 0 ? UInt64(70_000 + $0) : atFirst($0) }
    try region.restore(from: full.path)
    try expect(atFirst, "the first")
    try region.restore(from: full.path, folder("second"), folder("third"))
    try expect({ $0 == 150 ? 5 : (100..<200).contains($0) ? 0 : atSecond($0) }, "the third")
    try region.restore(from: full.path, folder("second"))
    try expect(atSecond, "the second")
    #expect(throws: PinError.self) { try region.restore(from: full.path, folder("third")) }
  }

  @Test("Memory that nobody touched is not read to write an image of it")
  func sparse() throws {
    let folder = try ImageDirectory()
    let space = try AddressSpace()
    defer { try? space.close() }
    let region = try space.map(.anonymous, pages: 1 << 20)
    try region.store(UInt64(1), toByteOffset: 77 << 20)
    let snapshot = try region.snapshot()
    let image = try snapshot.write(to: folder("sparse"))
    #expect(try image.allocatedBytes() <= 64 << 10)
    #expect(try snapshot.storedRuns().reduce(0) { $0 + $1.count } <= 512)
    try region.store(UInt64(2), toByteOffset: 77 << 20)
    snapshot.close()
    try region.restore(from: image.path)
    #expect(try Self.value(region, (77 << 20) / 4096) == 1)
  }
}
