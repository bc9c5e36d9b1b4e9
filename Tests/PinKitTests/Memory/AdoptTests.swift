import CTestSupport
import Glibc
import Testing

@testable import PinKit

@Suite("Adopting memory") struct AdoptTests {
  private func refusal(_ range: AddressRange) throws -> PinError? {
    let space = try AddressSpace.forTests()
    do throws(PinError) {
      let region = try space.adopt(range)
      try region.unmap()
    } catch { return error }
    return nil
  }

  private func expect(
    _ code: PinError.Code?, _ error: PinError?, sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    #expect(error?.code == code, sourceLocation: sourceLocation)
  }

  private func withPages(_ count: Int, _ body: (AddressRange) throws -> Void) throws {
    let memory = try ForeignMemory(.adoptedAnonymous, pages: count)
    defer { memory.unmap() }
    try body(memory.range)
  }

  private func part(_ range: AddressRange, _ pages: Range<Int>) -> AddressRange {
    AddressRange(start: range.start + UInt(pages.lowerBound * 4096), count: pages.count * 4096)
  }

  @Test("what is mapped is found out, not believed", arguments: [Subject.adoptedAnonymous, .adoptedShared, .adoptedFile])
  func kinds(_ subject: Subject) throws {
    let space = try AddressSpace.forTests()
    try subject.with(space, pages: 4) { region in
      switch (subject, region.backing.kind) {
      case (.adoptedAnonymous, .adopted(.anonymous)), (.adoptedShared, .adopted(.sharedMemory)): break
      case (.adoptedFile, .adopted(.file(_, isShared: true))): break
      default: Issue.record("\(subject) was taken for \(region.backing)")
      }
      #expect(region.pageCount == 4)
    }
    try space.close()
  }

  @Test("unmapping leaves the memory to the program, writable") func unmapping() throws {
    for mechanism in Mechanisms.all {
      try withPages(4) { range in
        let space = try AddressSpace.forTests()
        let region = try space.adopt(range)
        let tracker = try region.trackWrites(mechanism)
        try region.store(UInt8(1), toByteOffset: 0)
        let collected = try tracker.collect()
        #expect(collected.count == 1)
        try region.unmap()
        let pointer = unsafe try #require(UnsafeMutablePointer<UInt8>(bitPattern: range.start))
        for page in 0..<4 { unsafe pointer[page * 4096] = 9 }
        #expect(unsafe pointer[0] == 9)
        try space.close()
      }
    }
  }

  @Test("empty and misaligned ranges are refused") func misaligned() throws {
    try withPages(4) { range in
      try expect(.invalidArgument, refusal(AddressRange(start: range.start, count: 0)))
      try expect(.invalidArgument, refusal(AddressRange(start: range.start + 1, count: 4096)))
      try expect(.invalidArgument, refusal(AddressRange(start: range.start, count: 4095)))
      try expect(nil, refusal(part(range, 1..<2)))
    }
  }

  @Test("a hole is refused, wherever it is", arguments: [0, 2, 3]) func holes(_ page: Int) throws {
    // Another test's thread may map something into the hole: then it is none, and the next one is tried.
    for attempt in 1...20 {
      let memory = try ForeignMemory(.adoptedAnonymous, pages: 4)
      defer { memory.unmap(except: page) }
      unsafe munmap(UnsafeMutableRawPointer(bitPattern: memory.range.start + UInt(page * 4096)), 4096)
      let found = try refusal(memory.range)
      if found == nil, attempt < 20 { continue }
      return try expect(.invalidArgument, found)
    }
  }

  @Test("memory that cannot be read and written is refused", arguments: [PROT_READ, PROT_NONE, PROT_WRITE])
  func readOnly(_ protection: Int32) throws {
    try withPages(4) { range in
      unsafe mprotect(UnsafeMutableRawPointer(bitPattern: range.start + 8192), 4096, protection)
      try expect(.invalidArgument, refusal(range))
      try expect(nil, refusal(part(range, 0..<2)))
    }
  }

  @Test("memory of different kinds is refused") func mixed() throws {
    try withPages(4) { range in
      let file = try MemoryFile(name: "mixed", size: 4096)
      let made = unsafe mmap(
        UnsafeMutableRawPointer(bitPattern: range.start + 4096), 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
        file.descriptor, 0)
      try #require(UInt(bitPattern: made) == range.start + 4096)
      try expect(.invalidArgument, refusal(range))
      try expect(nil, refusal(part(range, 1..<2)))
    }
  }

  @Test("what a region manages already is refused") func overlap() throws {
    try withPages(8) { range in
      let space = try AddressSpace.forTests()
      let region = try space.adopt(part(range, 2..<4))
      for pages in [0..<3, 2..<4, 3..<8, 0..<8] { try expect(.inUse, refusal(part(range, pages))) }
      try expect(nil, refusal(part(range, 4..<8)))
      try region.unmap()
      try expect(nil, refusal(range))
      let owned = try space.map(.anonymous, pages: 4)
      try expect(.inUse, refusal(owned.addresses))
      try space.close()
    }
  }

  @Test(
    "the stack and the heap are refused",
    .enabled(if: ct_has_sanitizer() == 0, "under a sanitizer a local variable need not lie on the thread's stack"))
  func ofTheProcessItself() throws {
    var local = 0
    let here = unsafe withUnsafePointer(to: &local) { UInt(bitPattern: $0) } & ~4095
    try expect(.invalidArgument, refusal(AddressRange(start: here - 65536, count: 17 * 4096)))
    for name in ["[heap]", "[stack]"] {
      let maps = try ProcessMaps.mappings(in: AddressRange(start: 0, end: UInt.max))
      guard let mapping = maps.first(where: { $0.path == name }) else { continue }
      try expect(.invalidArgument, refusal(AddressRange(start: mapping.range.start, count: 4096)))
    }
  }
}
