import CTestSupport
import Glibc
import PinKitCrypto
import SystemPackage
import Testing

@testable import PinKit

/// What the calls of a region are tried on.
enum FuzzedMemory: String, Codable, Sendable, CaseIterable, CustomTestStringConvertible {
  case anonymous, pool, sealed, hugetlb, adoptedAnonymous, adoptedShared, adoptedFile, store

  var testDescription: String { rawValue }
  static let pages = 8

  /// Why it cannot be had here, or `nil`.
  var obstacle: String? { self == .hugetlb ? HugePages.obstacle : self == .adoptedFile ? ForeignMemory.diskObstacle : nil }

  func with(_ space: AddressSpace, _ body: (Region) throws -> Void) throws {
    let subject: Subject
    switch self {
    case .anonymous: subject = .anonymous
    case .pool: subject = .pool
    case .hugetlb: subject = .hugetlb
    case .adoptedAnonymous: subject = .adoptedAnonymous
    case .adoptedShared: subject = .adoptedShared
    case .adoptedFile: subject = .adoptedFile
    case .sealed:
      let region = try space.map(.pool, pages: Self.pages)
      defer { try? region.unmap() }
      try region.setSealer(AESGCMSealer())
      return try body(region)
    case .store:
      let region = try space.map(.file(UnrulyStore(pages: Self.pages)), pages: Self.pages)
      defer { try? region.unmap() }
      return try body(region)
    }
    try subject.with(space, pages: Self.pages, body)
  }
}

@Suite struct ArgumentFuzzTests {
  /// The order of the calls follows from it: what one leaves behind, the next one finds.
  private static let seed = Seed.base

  private static func run(_ calls: [ArgumentCall], _ evil: EvilIntegers) {
    var generator = SeededRandom(seed: seed)
    for call in calls.shuffled(using: &generator) { call.run(evil) }
  }

  @Test(
    "K5: no integer that a call of a region is given ends the process", .timeLimit(.minutes(60)),
    arguments: FuzzedMemory.allCases)
  func regions(_ memory: FuzzedMemory) async throws {
    try Test.skip(if: memory.obstacle)
    let note = LastCall()
    let result = await #expect(processExitsWith: .success) {
      [memory = memory as FuzzedMemory, path = note.path as String] in
      ct_deadline(500)
      LastCall.open(path)
      let space = try AddressSpace.forTests()
      let foreign = try ForeignMemory(.adoptedAnonymous, pages: 4)
      let file = FileDescriptor(rawValue: try ForeignMemory.temporaryFile())
      check(ftruncate(file.rawValue, 1 << 20), is: 0)
      try memory.with(space) { region in
        let evil = EvilIntegers(count: region.pageCount, memory: foreign.range)
        try region.fill(with: 3)
        ArgumentFuzzTests.run(
          RegionCalls.pages(region) + RegionCalls.ranges(region) + RegionCalls.files(region, file)
            + RegionCalls.tracking(region), evil)
        ArgumentFuzzTests.run(
          try RegionCalls.mirrors(region) + RegionCalls.snapshots(region), evil)
        // And it is as good as before.
        try region.store(UInt8(9), toByteOffset: 5)
        try check(region.load(fromByteOffset: 5, as: UInt8.self), is: 9)
      }
      try space.close()
    }
    note.close(result == nil)
  }

  @Test("K5: no integer that any other call is given ends the process", .timeLimit(.minutes(60)))
  func others() async throws {
    let note = LastCall()
    let result = await #expect(processExitsWith: .success) { [path = note.path as String] in
      ct_deadline(500)
      LastCall.open(path)
      let space = try AddressSpace.forTests()
      let foreign = try ForeignMemory(.adoptedAnonymous, pages: 4)
      let directory = try ImageDirectory()
      let store = try FileStore(path: directory("store"), creating: 8 * 4096)
      let evil = EvilIntegers(count: 8, memory: foreign.range)
      ArgumentFuzzTests.run(
        OtherCalls.spaces(space) + OtherCalls.stores(space, store, path: directory("made")) + OtherCalls.values()
          + OtherCalls.kernel() + [OtherCalls.holders()], evil)
      try space.close()
    }
    note.close(result == nil)
  }
}
