import CTestSupport
import Foundation
import Testing

@testable import PinKit

/// A column of the matrix.
private struct PinCase: CustomStringConvertible {
  let access: PinVerdict.Access
  let duration: PinVerdict.Duration
  var description: String { "\(access.rawValue), \(duration.rawValue)" }
  static let all = PinVerdict.Duration.allCases.flatMap { duration in
    PinVerdict.Access.allCases.map { PinCase(access: $0, duration: duration) }
  }
}

@Suite("Pin verdicts", .serialized, .enabled(if: (try? SubmissionRing(entries: 1)) != nil, "needs io_uring, the oracle"))
struct VerdictMatrixTests {
  private func with(_ ground: Ground, _ body: (MountedGround?) throws -> Void) throws {
    try Test.skip(if: ground.obstacle)
    let needsMount: Bool = ![.anonymous, .memfd, .zeroDevice, .secret].contains(ground)
    guard ground == .hugetlbfs else { return try body(needsMount ? try MountedGround(ground) : nil) }
    try HugePages.reserving(8) { try body(try MountedGround(ground)) }
  }

  /// Compares every cell of a mapping with the kernel; returns those that could not be tried.
  private func compare(
    _ range: AddressRange, _ name: String, isConservative: Bool = false, sourceLocation: SourceLocation = #_sourceLocation
  ) throws -> [String] {
    Test.leaveOut("the same by direct I/O", if: ForeignMemory.diskObstacle, sourceLocation: sourceLocation)
    var untried: [String] = []
    let mappings = try DirtyTracking.of(range)
    let mapping = try #require(mappings.first)
    for pin in PinCase.all {
      let verdict = try PinVerdict(of: range, for: pin.access, lasting: pin.duration)
      guard let kernel = try PinOracle.allows(range, pin.access, pin.duration) else {
        untried.append("\(name), \(pin)")
        continue
      }
      // What is unknown may be refused where the kernel would allow it, never the other way round.
      if isConservative, !verdict.isAllowed, kernel { continue }
      #expect(
        verdict.isAllowed == kernel, "\(name), \(pin): \(verdict), by \(PinOracle.trial(pin.access, pin.duration)!)",
        sourceLocation: sourceLocation)
      if pin.duration == .short, let direct = try PinOracle.allowsDirect(range, pin.access) {
        #expect(verdict.isAllowed == direct, "\(name), \(pin), by direct I/O", sourceLocation: sourceLocation)
      }
      if pin.duration == .long, mappings.count == 1, mapping.isWritable, !isConservative, mapping.memory != .secret {
        #expect(mapping.needsDirtyTracking == !kernel, "\(name)", sourceLocation: sourceLocation)
      }
    }
    return untried
  }

  // A test for each, so that what cannot be had here is skipped by its name.
  @Test("P1/P2/K1: anonymous memory: every cell is what the kernel says") func anonymous() throws { try matrix(.anonymous) }
  @Test("P1/P2/K1: a memfd: every cell is what the kernel says") func memfd() throws { try matrix(.memfd) }
  @Test("P1/P2/K1: tmpfs: every cell is what the kernel says", .needs(.tmpfs)) func tmpfs() throws { try matrix(.tmpfs) }
  @Test("P1/P2/K1: hugetlbfs: every cell is what the kernel says", .needs(.hugetlbfs)) func hugetlbfs() throws {
    try matrix(.hugetlbfs)
  }
  @Test("P1/P2/K1: ext4: every cell is what the kernel says", .needs(.ext4)) func ext4() throws { try matrix(.ext4) }
  @Test("P1/P2/K1: xfs: every cell is what the kernel says", .needs(.xfs)) func xfs() throws { try matrix(.xfs) }
  @Test("P1/P2/K1: btrfs: every cell is what the kernel says", .needs(.btrfs)) func btrfs() throws { try matrix(.btrfs) }

  private func matrix(_ ground: Ground) throws {
    try with(ground) { mount in
      var untried: [String] = []
      for isShared in [true, false] {
        let mapping = try GroundMapping(ground, mount, shared: isShared)
        untried += try compare(mapping.range, "\(ground.rawValue), \(isShared ? "shared" : "private")")
      }
      // A process has no way to take these without writing too; the book says so.
      #expect(untried == ["\(ground.rawValue), shared, reading, long", "\(ground.rawValue), private, reading, long"])
    }
  }

  @Test("P1: a mapping without the right is refused as the kernel refuses it", arguments: Ground.matrix)
  func rights(_ ground: Ground) throws {
    try with(ground) { mount in
      for (isShared, protection) in [(true, PROT_READ), (false, PROT_READ), (true, PROT_NONE), (false, PROT_NONE)] {
        let mapping = try GroundMapping(ground, mount, shared: isShared, protection: protection)
        _ = try compare(mapping.range, "\(ground.rawValue), shared \(isShared), protection \(protection)")
        #expect(try !DirtyTracking.of(mapping.range)[0].needsDirtyTracking)
      }
    }
  }

  @Test(
    "P2/K1: who wants to be notified takes a fault at the first write, and nobody else",
    arguments: Ground.matrix + [.ramfs])
  func notifications(_ ground: Ground) throws {
    try with(ground) { mount in
      let mapping = try GroundMapping(ground, mount, shared: true)
      let found = try DirtyTracking.of(mapping.range)[0]
      #expect(found.wantsWriteNotify == PinOracle.noticesFirstWrite(mapping.range, pageSize: ground.pageSize))
      #expect(found.wantsWriteNotify == found.needsDirtyTracking)
    }
  }

  @Test("P2: write-protected shared memory wants to be notified, and may be pinned for long all the same")
  func protectedMemory() throws {
    let mapping = try GroundMapping(.memfd, nil, shared: true)
    let descriptor = try Userfaultfd(features: [.wpHugetlbfsShmem, .wpAsync])
    try descriptor.register(mapping.range, for: .writeProtect)
    let found = try DirtyTracking.of(mapping.range)[0]
    #expect(found.wantsWriteNotify && !found.needsDirtyTracking)
    #expect(PinOracle.noticesFirstWrite(mapping.range, pageSize: Memory.pageSize))
    _ = try compare(mapping.range, "write-protected memfd")
  }

  @Test(
    "P1/K1: a file without a name is judged as one with a name", arguments: [Ground.tmpfs, .ext4, .xfs, .btrfs])
  func unlinked(_ ground: Ground) throws {
    try with(ground) { mount in
      let mapping = try GroundMapping(ground, mount, shared: true, named: false)
      _ = try compare(mapping.range, "\(ground.rawValue), deleted")
    }
  }

  @Test("P1/K1: beyond the matrix", arguments: [Ground.ramfs, .zeroDevice, .secret]) func beyond(_ ground: Ground)
    throws
  {
    try with(ground) { mount in
      for isShared in ground == .secret ? [true] : [true, false] {
        let mapping = try GroundMapping(ground, mount, shared: isShared)
        _ = try compare(mapping.range, "\(ground.rawValue), shared \(isShared)")
      }
    }
  }

  @Test(
    "P1: what cannot be known is never allowed where the kernel refuses it",
    arguments: [Ground.overlayOnTmpfs, .overlayOnExt4])
  func unknown(_ ground: Ground) throws {
    try with(ground) { mount in
      let mapping = try GroundMapping(ground, mount, shared: true)
      #expect(try DirtyTracking.of(mapping.range)[0].memory == .unknown("overlay"))
      _ = try compare(mapping.range, ground.rawValue, isConservative: true)
      let verdict = try PinVerdict(of: mapping.range, for: .writing, lasting: .long)
      #expect(verdict == .refused(.needsDirtyTracking(.unknown("overlay"))))
    }
  }

  @Test("P1: a pin over several mappings is refused if it is for one of them, and over a hole")
  func several() throws {
    let mapping = try GroundMapping(.anonymous, nil, shared: false)
    let second = AddressRange(start: mapping.range.start + UInt(Memory.pageSize), end: mapping.range.end)
    let address = unsafe UnsafeMutableRawPointer(bitPattern: second.start)
    try #require(unsafe mprotect(address, second.count, PROT_READ) == 0)
    #expect(try DirtyTracking.of(mapping.range).map(\.range.count) == [Memory.pageSize, Memory.pageSize])
    _ = try compare(mapping.range, "half of it read-only")
    #expect(try PinVerdict(of: mapping.range, for: .writing, lasting: .long) == .refused(.noAccess(.writing)))
    #expect(throws: PinError.self) { try DirtyTracking.of(AddressRange(start: 0, end: 4096)) }
    #expect(throws: PinError.self) { try DirtyTracking.of(AddressRange(start: second.start, count: 0)) }
  }

  @Test("P1: the table of the book is what the predicates say") func article() throws {
    let book = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appending(
      path: "../../../Sources/PinKit/PinKit.docc/PinVerdicts.md")
    let lines = try String(contentsOf: book, encoding: .utf8).split(separator: "\n").map(String.init)
    let table = lines.drop { !$0.hasPrefix("| writable mapping of") }.prefix { $0.hasPrefix("|") }
    #expect(
      Array(table) == VerdictTable.markdown,
      "write this into PinVerdicts.md:\n\(VerdictTable.markdown.joined(separator: "\n"))")
  }
}
