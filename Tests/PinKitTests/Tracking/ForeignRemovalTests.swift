import Glibc
import Testing

@testable import PinKit

/// Memory whose content goes without being written, as other code takes its pages away.
enum RemovedMemory: String, CaseIterable, CustomTestStringConvertible, Sendable {
  case privateFile, privateMemfd, privateHugetlb, sharedMemfd, sharedFile

  var testDescription: String { rawValue }

  /// Why it cannot be had here, or `nil`.
  var obstacle: String? {
    switch self {
    case .privateHugetlb: HugePages.obstacle
    case .privateFile, .sharedFile: ForeignMemory.diskObstacle
    case .privateMemfd, .sharedMemfd: nil
    }
  }

  /// Those of which the kernel says that pages are taken away.
  var announcing: [WriteTracking.Mechanism] {
    switch self {
    case .privateFile, .privateMemfd, .sharedFile: [.asynchronous]
    case .privateHugetlb, .sharedMemfd: [.asynchronous, .handlerThread, .inPlace]
    }
  }

  var pages: Int { self == .privateHugetlb ? 4 : 64 }

  /// Calls `body` with adopted memory, every page of which holds version 1. Skips the test, or its case, where there can be none.
  func with(_ body: (Region) throws -> Void) throws {
    try Test.skip(if: obstacle)
    if self == .privateHugetlb { return try HugePages.reserving(4) { try mapped(body) } }
    try mapped(body)
  }

  private func mapped(_ body: (Region) throws -> Void) throws {
    let bytes = pages * (self == .privateHugetlb ? 2 << 20 : 4096)
    var descriptor: CInt = -1
    defer { if descriptor >= 0 { close(descriptor) } }
    var flags = self == .sharedMemfd || self == .sharedFile ? MAP_SHARED : MAP_PRIVATE
    switch self {
    case .privateFile, .sharedFile: descriptor = try ForeignMemory.temporaryFile()
    case .privateMemfd, .sharedMemfd:
      let file = try MemoryFile(name: "test", size: bytes)
      descriptor = dup(file.descriptor)
    case .privateHugetlb: flags |= MAP_ANONYMOUS | 0x40000  // MAP_HUGETLB
    }
    if descriptor >= 0 { try #require(ftruncate(descriptor, bytes) == 0) }
    let made = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, flags, descriptor, 0)
    let start = UInt(bitPattern: made)
    try #require(start != UInt.max)
    defer { unsafe munmap(made, bytes) }
    let space = try AddressSpace.forTests()
    let region = try space.adopt(AddressRange(start: start, count: bytes))
    try region.write(version: 1, to: 0..<pages)
    try body(region)
    try space.close()
  }
}

/// Removal behind PinKit's back, of adopted memory of every kind.
@Suite("Pages that others take away") struct ForeignRemovalTests {
  struct Case: Sendable, CustomTestStringConvertible {
    let memory: RemovedMemory
    let mechanism: WriteTracking.Mechanism
    let advice: Memory.Advice
    var testDescription: String { "\(advice) of \(memory), \(mechanism)" }

    static let all: [Case] = RemovedMemory.allCases.flatMap { memory in
      // Holes can be punched in shared memory alone.
      (memory == .sharedMemfd || memory == .sharedFile ? [Memory.Advice.dontNeed, .remove] : [.dontNeed]).flatMap { advice in
        memory.announcing.map { Case(memory: memory, mechanism: $0, advice: advice) }
      }
    }
  }

  @Test("W5: what the kernel announces is in the next set, also where it does not count as written", arguments: Case.all)
  func tracked(_ removal: Case) throws {
    try removal.memory.with { region in
      let tracker = try region.trackWrites(removal.mechanism)
      #expect(try tracker.collect().isEmpty)
      try Memory.advise(region.addresses(of: 1..<3), removal.advice)
      // Whether it is read first or not.
      _ = try region.load(fromByteOffset: region.pageSize, as: UInt64.self)
      #expect(try tracker.collect().runs == [1..<3])
      #expect(try tracker.collect().isEmpty)
      try region.write(version: 2, to: 1..<2)
      try region.write(version: 2, to: 3..<4)
      #expect(try tracker.collect().runs == [1..<2, 3..<4])
    }
  }

  @Test(
    "W6: a snapshot of adopted memory is given up where pages were taken away that it was owed",
    arguments: Case.all.filter { $0.mechanism != .asynchronous })
  func snapshot(_ removal: Case) throws {
    try removal.memory.with { region in
      let snapshot = try region.snapshot(.init(mechanism: removal.mechanism))
      try region.write(version: 2, to: 0..<1)
      // What was kept is not owed any more.
      try Memory.advise(region.addresses(of: 0..<1), removal.advice)
      #expect(try snapshot.pages(unlike: { _ in 1 }) == [])
      try Memory.advise(region.addresses(of: 2..<3), removal.advice)
      #expect(code { _ = try snapshot.read(2) } == .snapshotLost)
      #expect(code { _ = try snapshot.read(0) } == .snapshotLost)
      snapshot.close()
      let next = try region.snapshot()
      try region.write(version: 3, to: 0..<region.pageCount)
      #expect(try next.read(1).isEmpty == false && next.failure == nil)
    }
  }
}
