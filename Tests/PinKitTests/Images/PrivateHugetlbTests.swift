import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// Memory on huge pages that the program mapped for itself alone.
@Suite("Private hugetlb memory", .enabled(if: HugePages.canBeReserved, "needs huge pages that can be reserved"))
struct PrivateHugetlbTests {
  private static let pageSize = 2 << 20

  /// Calls `body` with an adopted private mapping of four huge pages, of a file if wanted, which then holds 5 in every page.
  private static func with(file: Bool, _ body: (Region) throws -> Void) throws {
    try HugePages.reserving(file ? 8 : 4) {
      let space = try AddressSpace.forTests()
      let bytes = 4 * pageSize
      // MAP_ANONYMOUS | MAP_HUGETLB
      let flags = file ? MAP_PRIVATE : MAP_PRIVATE | MAP_ANONYMOUS | 0x40000
      let descriptor = file ? try makeFile(bytes) : -1
      defer { if file { close(descriptor) } }
      let made = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, flags, descriptor, 0)
      let address = UInt(bitPattern: made)
      try #require(address != UInt.max)
      defer { unsafe munmap(made, bytes) }
      let region = try space.adopt(AddressRange(start: address, count: bytes))
      try region.write(version: 1, to: 0..<4)
      try body(region)
      try space.close()
    }
  }

  private static func makeFile(_ bytes: Int) throws -> CInt {
    let memory = try MemoryFile(name: "test", size: bytes, options: .hugetlb)
    let mapping = try Mapping(
      count: bytes, source: .file(memory.descriptor, offset: 0, shared: true), forHugetlb: true)
    let start = unsafe UnsafeMutableRawPointer(bitPattern: mapping.range.start)!
    for page in 0..<4 { unsafe start.storeBytes(of: 5, toByteOffset: page * pageSize, as: UInt8.self) }
    return dup(memory.descriptor)
  }

  @Test("W5: private hugetlb memory can be discarded, as it says", arguments: Mechanisms.all)
  func discard(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with(file: false) { region in
      #expect(region.backing.support.contains(.discard))
      try region.discard(3..<4)
      let tracker = try region.trackWrites(mechanism)
      try region.discard(1..<2)
      #expect(try region.load(fromByteOffset: 0, as: UInt64.self) == Pattern.word(0, 1, 0))
      for page in [1, 3] { #expect(try region.load(fromByteOffset: page * Self.pageSize, as: UInt64.self) == 0) }
      #expect(try tracker.collect().runs == [1..<2])
      try region.write(version: 2, to: 1..<2)
      #expect(try tracker.collect().runs == [1..<2])
      #expect(try region.tryDiscard(0..<2) == .done)
      #expect(try tracker.collect().runs == [0..<2])
    }
  }

  @Test("W6: what a discard of private hugetlb memory drops was kept before", arguments: Mechanisms.synchronous)
  func snapshot(_ mechanism: WriteTracking.Mechanism) throws {
    try Self.with(file: false) { region in
      let snapshot = try region.snapshot(.init(mechanism: mechanism))
      try region.discard(0..<3)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      try region.write(version: 2, to: 0..<4)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
    }
  }

  @Test("W5: where a file lies beneath it, it says that it cannot be discarded, and nothing has changed")
  func ofFile() throws {
    try Self.with(file: true) { region in
      #expect(!region.backing.support.contains(.discard))
      #expect(code { try region.discard(0..<1) } == .unsupported)
      #expect(code { _ = try region.tryDiscard(0..<1) } == .unsupported)
      let word = try region.load(fromByteOffset: 0, as: UInt64.self)
      #expect(word == Pattern.word(0, 1, 0))
    }
  }

  @Test("W5: an image with pages of zeros is restored whole", arguments: [false, true])
  func restore(file: Bool) throws {
    try Self.with(file: file) { region in
      try unsafe region.withUnsafeMutableBytes { bytes in
        let zeros = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[Self.pageSize..<3 * Self.pageSize])
        _ = unsafe zeros.initializeMemory(as: UInt8.self, repeating: 0)
      }
      let directory = try ImageDirectory()
      let image = try region.snapshot().write(to: directory("image"))
      try region.write(version: 2, to: 0..<4)
      try region.restore(from: [image])
      let wrong = try region.snapshot().pages(unlike: { $0 == 0 || $0 == 3 ? 1 : 0 })
      #expect(wrong == [])
    }
  }
}
