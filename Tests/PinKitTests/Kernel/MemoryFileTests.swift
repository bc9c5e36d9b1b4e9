import Foundation
import Testing

@testable import PinKit

private let page = Memory.pageSize

/// Writes every byte of a range that the test owns.
@unsafe func fill(_ range: AddressRange, with value: UInt8) {
  unsafe UnsafeMutableRawPointer(bitPattern: range.start)!
    .initializeMemory(as: UInt8.self, repeating: value, count: range.count)
}

@unsafe func byte(at address: UInt) -> UInt8 { unsafe UnsafePointer<UInt8>(bitPattern: address)!.pointee }

@unsafe func bytes(_ range: AddressRange) -> [UInt8] {
  unsafe Array(UnsafeBufferPointer(start: UnsafePointer<UInt8>(bitPattern: range.start), count: range.count))
}

@Suite("MemoryFile")
struct MemoryFileTests {
  private func content(_ file: borrowing MemoryFile, _ range: Range<Int>) throws -> [UInt8] {
    var array = [UInt8](repeating: 0xff, count: range.count)
    var span = array.mutableSpan
    try file.read(into: &span, at: range.lowerBound)
    return array
  }

  private func blocks(_ file: borrowing MemoryFile) throws -> Int {
    var info = stat()
    try #require(unsafe fstat(file.descriptor, &info) == 0)
    return Int(info.st_blocks)
  }

  @Test("a new file reads as zeros, costs nothing and is closed on exec")
  func fresh() throws {
    let file = try MemoryFile(name: "fresh", size: 1 << 40)
    #expect(file.size == 1 << 40)
    #expect(try content(file, (1 << 40) - 3..<1 << 40) == [0, 0, 0])
    #expect(try blocks(file) == 0)
    let info = try ProcessMaps.readFile("/proc/self/fdinfo/\(file.descriptor)")
    let flags = try #require(info.split(separator: "\n").first { $0.hasPrefix("flags:") })
    let bits = try #require(Int(flags.split(separator: "\t")[1], radix: 8))
    #expect(bits & Int(O_CLOEXEC) != 0)
  }

  @Test("what is written at an offset is read back, and seen through a mapping")
  func roundTrip() throws {
    let file = try MemoryFile(name: "roundTrip", size: 3 * page)
    let data = (0..<page + 5).map { UInt8(truncatingIfNeeded: $0) }
    try file.write(data.span, at: page - 2)
    #expect(try content(file, page - 2..<2 * page + 3) == data)
    let mapping = try Mapping(count: 3 * page, source: .file(file.descriptor, offset: 0, shared: true))
    #expect(unsafe byte(at: mapping.range.start + UInt(page)) == 2)
  }

  @Test("bounds are those of the size, before and after a resize")
  func bounds() throws {
    var file = try MemoryFile(name: "bounds", size: page)
    let data: [UInt8] = [1, 2, 3]
    for offset in [-1, page - 2, page, Int.max] {
      #expect(throws: PinError.self) { try file.write(data.span, at: offset) }
      #expect(throws: PinError.self) { try content(file, offset..<max(offset, offset &+ 3)) }
    }
    #expect(throws: PinError.self) { try file.punchHole(0..<page + 1) }
    #expect(throws: PinError.self) { try file.allocate(-1..<page) }
    try file.resize(to: 2 * page)
    try file.write(data.span, at: page)
    try file.resize(to: page)
    try file.resize(to: 2 * page)
    #expect(try content(file, page..<page + 3) == [0, 0, 0])
    #expect(throws: PinError.self) { try file.resize(to: -1) }
    #expect(throws: PinError.self) { _ = try MemoryFile(name: "negative", size: -1) }
  }

  @Test("a hole gives the memory back and reads as zeros; allocating takes it and keeps what is there")
  func holes() throws {
    let file = try MemoryFile(name: "holes", size: 8 * page)
    try file.allocate(0..<8 * page)
    #expect(try blocks(file) == 8 * page / 512)
    try file.write([9, 9].span, at: 3 * page)
    try file.punchHole(0..<3 * page)
    #expect(try blocks(file) == 5 * page / 512)
    try file.allocate(0..<8 * page)
    #expect(try content(file, 3 * page..<3 * page + 2) == [9, 9])
    try file.punchHole(3 * page..<3 * page + 1)
    #expect(try content(file, 3 * page..<3 * page + 2) == [0, 9])
    try file.punchHole(0..<0)
    try file.allocate(0..<0)
  }

  @Test("an outsider that cuts the file short makes a read fail, not return old bytes")
  func cutShort() throws {
    let file = try MemoryFile(name: "cutShort", size: page)
    try #require(ftruncate(file.descriptor, 10) == 0)
    let error = #expect(throws: PinError.self) { try content(file, 0..<20) }
    #expect(error?.code == .outOfBounds)
  }

  @Test("dropping the value closes the descriptor")
  func closes() async {
    await #expect(processExitsWith: .success) {
      let first = try MemoryFile(name: "first", size: 1).descriptor
      var info = stat()
      #expect(unsafe fstat(first, &info) == -1)
    }
  }

  @Test("huge pages that cannot be had are out of space or memory")
  func noHugePages() throws {
    let size = try #require(Capabilities.probe().hugePages).pageSize
    let file = try MemoryFile(name: "tooHuge", size: size << 20, options: .hugetlb)
    let error = #expect(throws: PinError.self) { try file.allocate(0..<size << 20) }
    #expect(error?.code == .outOfSpace || error?.code == .outOfMemory)
  }

  @Test("huge pages map, and allocate", .skipped(if: HugePages.obstacle)) func hugePages() throws {
    let size = try #require(Capabilities.probe().hugePages).pageSize
    try HugePages.reserving(1) {
      let file = try MemoryFile(name: "huge", size: size, options: .hugetlb)
      try file.allocate(0..<size)
      let mapping = try Mapping(count: size, source: .file(file.descriptor, offset: 0, shared: true))
      unsafe fill(mapping.range, with: 3)
      #expect(try content(file, size - 1..<size) == [3])
    }
  }
}
