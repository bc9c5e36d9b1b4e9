import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE`.
enum GuardPages {
  /// When pages become guard pages.
  enum Moment: Sendable, CaseIterable { case beforeAdopting, beforeSnapshot, afterSnapshot }

  /// Some at the ends, one alone, and two together.
  static let pages = [0, 70, 71, 200, 299]
  static let count = 300
  static let others = (0..<count).filter { !pages.contains($0) }

  static let areKnown = attempt { range in install(range, 0) && isGuard(range, 0) }
  /// Whether the kernel says which pages are guard pages.
  static let canBeFound =
    areKnown
    && attempt { range in
      var found = 0
      let query = PageMap.Query(required: .guardPage, returned: .guardPage)
      do throws(PinError) { try PageMap().scan(range, query) { _, _ in found += 1 } } catch { return false }
      return found == 0
    }

  private static func attempt(_ body: (AddressRange) -> Bool) -> Bool {
    guard let memory = try? ForeignMemory(.adoptedAnonymous, pages: 1) else { return false }
    defer { memory.unmap() }
    return body(memory.range)
  }

  /// Dropping a page of shared memory that userfaultfd has armed leaves a mark, which the kernel (6.18) takes for a page to be dropped, again
  /// and again: madvise(2) does not return.
  static func canInstall(_ mechanism: WriteTracking.Mechanism, _ subject: Subject, _ moment: Moment) -> Bool {
    !(subject == .adoptedShared && moment == .afterSnapshot && mechanism != .mprotect)
  }

  static func install(_ range: AddressRange, _ page: Int) -> Bool { advise(range, page, 102) == 0 }
  static func remove(_ range: AddressRange, _ page: Int) -> Bool { advise(range, page, 103) == 0 }
  static func isGuard(_ range: AddressRange, _ page: Int) -> Bool { advise(range, page, 22) == EFAULT }

  private static func advise(_ range: AddressRange, _ page: Int, _ advice: CInt) -> CInt {
    let start = unsafe UnsafeMutableRawPointer(bitPattern: range.start + UInt(page * 4096))
    return unsafe madvise(start, 4096, advice) == 0 ? 0 : errno
  }

  /// Whether a number is that of an open /proc/PID/mem.
  static func isProcessMemory(_ descriptor: CInt) -> Bool {
    var target = [UInt8](repeating: 0, count: 64)
    let count = unsafe target.withUnsafeMutableBytes { bytes in
      unsafe readlink("/proc/self/fd/\(descriptor)", bytes.baseAddress!.assumingMemoryBound(to: CChar.self), 63)
    }
    return count > 4 && String(decoding: target[..<count], as: UTF8.self).hasSuffix("/mem")
  }

  static func install(_ range: AddressRange) {
    for page in pages { check(install(range, page), "page \(page) became a guard page") }
  }

  /// Page by page, what the snapshot has.
  static func expect(_ snapshot: Snapshot, version: UInt64 = 1, _ comment: String) throws {
    try check(snapshot.wrongPages(of: others, version: version), is: [], comment)
    for page in pages { check(code { _ = try snapshot.read(page) }, is: .inaccessible, "\(comment), page \(page)") }
    check(snapshot.failure == nil, "\(comment): the snapshot is not given up")
    check(code { _ = try snapshot.readAll() }, is: .inaccessible, comment)
  }
}

extension Snapshot {
  func wrongPages(of pages: [Int], version: UInt64) throws -> [Int] {
    try pages.filter { page in
      let bytes = try read(page)
      return unsafe !bytes.withUnsafeBytes { unsafe Pattern.matches($0, page, version) }
    }
  }

  func readAll() throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: pageCount * pageSize)
    try unsafe bytes.withUnsafeMutableBytes { unsafe try copy(0..<pageCount, into: $0) }
    return bytes
  }
}

/// A path for an image, which is removed with all that lies beside it.
func withImagePath<Result>(_ body: (String) throws -> Result) rethrows -> Result {
  let path = "/tmp/pinkit-guard-\(getpid())-\(UInt64.random(in: 0..<UInt64.max))"
  defer { for name in [path, path + ".pinkit"] { unsafe unlink(name) } }
  return try body(path)
}

/// Everything that reads a region, beside guard pages.
enum GuardScenario {
  static func run(
    _ mechanism: WriteTracking.Mechanism, _ subject: Subject, _ moment: GuardPages.Moment
  ) throws {
    let note = "\(mechanism.rawValue), \(subject.rawValue), \(moment)"
    let memory = try ForeignMemory(subject, pages: GuardPages.count)
    defer { memory.unmap() }
    if moment == .beforeAdopting { GuardPages.install(memory.range) }
    let space = try AddressSpace.forTests()
    let region = try space.adopt(memory.range)
    try region.write(version: 1, to: moment == .beforeAdopting ? GuardPages.others : Array(0..<GuardPages.count))
    if moment == .beforeSnapshot { GuardPages.install(memory.range) }
    let snapshot = try region.snapshot(.init(mechanism: mechanism))
    if moment == .afterSnapshot { GuardPages.install(memory.range) }
    // Read from the region, for half of them.
    try check(snapshot.wrongPages(of: GuardPages.others.filter { $0 < 150 }, version: 1), is: [], note)
    // Dense, so that faults take neighbours along.
    try region.write(version: 2, to: GuardPages.others)
    try GuardPages.expect(snapshot, "\(note), written")
    for page in GuardPages.pages {
      let offset = page * 4096
      check(code { _ = try region.load(fromByteOffset: offset, as: UInt8.self) }, is: .inaccessible, note)
      check(code { try region.store(UInt8(1), toByteOffset: offset) }, is: .inaccessible, note)
      check(code { try region.touch(page) }, is: .inaccessible, note)
      check(code { _ = try region.loadAcquiring(fromByteOffset: offset) }, is: .inaccessible, note)
      check(code { try region.storeReleasing(1, toByteOffset: offset) }, is: .inaccessible, note)
      check(GuardPages.isGuard(memory.range, page), "\(note): page \(page) is still a guard page")
    }
    try region.store(UInt64(7), toByteOffset: 4096)
    try check(region.load(fromByteOffset: 4096, as: UInt64.self), is: 7, note)
    try image(of: snapshot, moment, space, note)
    // Pages that are dropped, with guard pages among them.
    if subject == .adoptedAnonymous { try region.discard(60..<80) }
    try GuardPages.expect(snapshot, "\(note), dropped")
    try region.unmap()
    try GuardPages.expect(snapshot, "\(note), unmapped")
    for page in GuardPages.pages { check(GuardPages.isGuard(memory.range, page), "\(note): page \(page) is a guard page") }
    snapshot.close()
    try space.close()
  }

  /// What had no bytes at the moment of the snapshot is zeros in an image; what has lost them fails it.
  private static func image(
    of snapshot: Snapshot, _ moment: GuardPages.Moment, _ space: AddressSpace, _ note: String
  ) throws {
    let stored = DirtySet(pageCount: GuardPages.count, runs: try snapshot.storedRuns())
    let wereThere = moment != .afterSnapshot && GuardPages.canBeFound
    for page in GuardPages.pages {
      check(stored.contains(page), is: !wereThere, "\(note): page \(page) among the stored runs")
    }
    for page in GuardPages.others { check(stored.contains(page), "\(note): page \(page) is stored") }
    try withImagePath { path in
      guard wereThere else { return check(code { _ = try snapshot.write(to: path) }, is: .inaccessible, note) }
      let image = try snapshot.write(to: path)
      var seen: [Int] = []
      unsafe try snapshot.forEachStoredRun { pages, _ in seen += pages }
      check(seen, is: GuardPages.others, note)
      // Into memory that has guard pages in the same places, and others.
      let memory = try ForeignMemory(.adoptedAnonymous, pages: GuardPages.count)
      defer { memory.unmap() }
      GuardPages.install(memory.range)
      let region = try space.adopt(memory.range)
      try region.restore(from: [image])
      let copy = try region.snapshot()
      try GuardPages.expect(copy, "\(note), restored")
      copy.close()
      try region.unmap()
    }
  }
}
