import Glibc
import Logging
import Synchronization
import Testing

@testable import PinKit

/// What a test tracks.
enum Subject: String, Sendable, CaseIterable, CustomTestStringConvertible {
  case anonymous, pool, hugetlb, adoptedAnonymous, adoptedShared, adoptedFile

  var testDescription: String { rawValue }

  var mechanisms: [WriteTracking.Mechanism] {
    self == .adoptedFile ? [.asynchronous, .mprotect] : Mechanisms.all
  }

  /// Whether `Region.discard(_:)` works.
  var canDiscard: Bool { self != .adoptedFile }

  var pageSize: Int { self == .hugetlb ? 2 << 20 : 4096 }

  /// Why it cannot be had here, or `nil`.
  var obstacle: String? {
    switch self {
    case .hugetlb: HugePages.obstacle
    case .adoptedFile: ForeignMemory.diskObstacle
    default: nil
    }
  }

  /// Calls `body` with a new region in `space`, and clears up behind it. Skips the test, or its case, where there can be none.
  func with<Result>(_ space: AddressSpace, pages: Int, _ body: (Region) throws -> Result) throws -> Result {
    try Test.skip(if: obstacle)
    switch self {
    case .anonymous: return try use(try space.map(.anonymous(hugePages: .never), pages: pages), body)
    case .pool: return try use(try space.map(.pool, pages: pages), body)
    case .hugetlb:
      return try HugePages.reserving(pages) { try use(try space.map(.hugetlb, pages: pages), body) }
    case .adoptedAnonymous, .adoptedShared, .adoptedFile:
      let memory = try ForeignMemory(self, pages: pages)
      defer { memory.unmap() }
      return try use(try space.adopt(memory.range), body)
    }
  }

  private func use<Result>(_ region: Region, _ body: (Region) throws -> Result) throws -> Result {
    defer { do { try region.unmap() } catch {} }
    return try body(region)
  }
}

/// A mechanism and what it is tried on.
struct Combination: Sendable, CustomTestStringConvertible {
  let mechanism: WriteTracking.Mechanism
  let subject: Subject

  var testDescription: String { "\(mechanism.rawValue) on \(subject.rawValue)" }

  static let all: [Combination] = Subject.allCases.flatMap { subject in
    subject.mechanisms.map { Combination(mechanism: $0, subject: subject) }
  }
  static let discardable = all.filter(\.subject.canDiscard)

  /// Whether a page that the kernel was moving may be in a later set again, although nobody wrote it ("Pages that the kernel takes away" in
  /// the book).
  var mayRepeat: Bool { mechanism == .asynchronous && [.pool, .adoptedShared, .adoptedFile].contains(subject) }
}

/// Memory that the test maps itself, for PinKit to adopt.
struct ForeignMemory: Sendable {
  let range: AddressRange

  init(_ subject: Subject, pages: Int) throws {
    let bytes = pages * 4096
    switch subject {
    case .adoptedShared:
      let memory = try MemoryFile(name: "test", size: bytes)
      range = try Self.map(bytes, memory.descriptor)
    case .adoptedFile:
      let descriptor = try Self.temporaryFile()
      defer { close(descriptor) }
      try #require(ftruncate(descriptor, bytes) == 0)
      range = try Self.map(bytes, descriptor)
    default: range = try Self.map(bytes, -1)
    }
    if subject == .adoptedAnonymous { try Memory.advise(range, .noHugePages) }
  }

  static func map(_ bytes: Int, _ descriptor: CInt) throws -> AddressRange {
    let flags = descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED
    let made = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, flags, descriptor, 0)
    let address = UInt(bitPattern: made)
    try #require(address != UInt.max)
    return AddressRange(start: address, count: bytes)
  }

  /// Of a file without a name.
  static func temporaryFile() throws -> CInt {
    var path = Array("/tmp/pinkit-test-XXXXXX".utf8CString)
    let descriptor = unsafe mkstemp(&path)
    try #require(descriptor >= 0)
    unsafe unlink(path)
    return descriptor
  }

  func unmap() { Self.unmap(range) }

  /// Leaves out a page that is gone: by now it may be somebody else's.
  func unmap(except page: Int) {
    let hole = range.start + UInt(page * 4096)
    Self.unmap(AddressRange(start: range.start, end: hole))
    Self.unmap(AddressRange(start: hole + 4096, end: range.end))
  }

  private static func unmap(_ range: AddressRange) {
    guard !range.isEmpty else { return }
    unsafe munmap(UnsafeMutableRawPointer(bitPattern: range.start), range.count)
  }

  /// Whether files under /tmp live on a file system that writes back, as ext4 does.
  static let isTemporaryDirectoryOnDisk: Bool = !ProcessMaps.isTmpfs("/tmp")
  static let diskObstacle: String? = isTemporaryDirectoryOnDisk ? nil : "/tmp is in memory"
}

/// Huge pages of the hugetlb pool, taken for a test and given back.
enum HugePages {
  private static let path = "/proc/sys/vm/nr_hugepages"
  private static let lock = Mutex<Void>(())

  static let canBeReserved: Bool = (try? reserving(8) { true }) ?? false
  static let obstacle: String? = canBeReserved ? nil : "no huge pages can be reserved: sysctl vm.nr_hugepages is root's"

  static func reserving<Result>(_ count: Int, _ body: () throws -> Result) throws -> Result {
    try alone {
      let before = try current()
      try set(before + count)
      if try current() < before + count {
        try? set(before)
        throw PinError(.outOfMemory, operation: "reserve \(count) huge pages")
      }
    }
    defer { try? giveBack(count) }
    return try body()
  }

  /// When they are free again: a driver lets go of pages a little after its socket was closed, and the kernel would take those that another
  /// test has reserved.
  private static func giveBack(_ count: Int) throws {
    for _ in 0..<60_000 {
      var isDone = false
      try alone {
        guard try free() >= count else { return }
        try set(max(0, try current() - count))
        isDone = true
      }
      if isDone { return }
      usleep(1000)
    }
    try alone { try set(max(0, try current() - count)) }
  }

  private static func free() throws -> Int {
    let counts = try ["free", "resv"].map { name in
      let text = try ProcessMaps.readFile("/sys/kernel/mm/hugepages/hugepages-2048kB/\(name)_hugepages")
      return Int(text.split(separator: "\n").first ?? "") ?? 0
    }
    return counts[0] - counts[1]
  }

  /// While no other thread, nor a test in a process of its own, changes the number.
  private static func alone(_ body: () throws -> Void) throws {
    try lock.withLock { _ in
      let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
      try #require(descriptor >= 0)
      defer { close(descriptor) }
      while flock(descriptor, LOCK_EX) != 0 { try #require(errno == EINTR) }
      try body()
    }
  }

  private static func current() throws -> Int {
    let text = try ProcessMaps.readFile(path)
    return Int(text.split(separator: "\n").first ?? "") ?? 0
  }

  private static func set(_ count: Int) throws {
    let descriptor = unsafe open(path, O_WRONLY | O_CLOEXEC)
    // Whoever may not set it finds out by trying.
    guard descriptor >= 0 else { throw PinError(.permissionDenied, operation: "open \(path)") }
    defer { close(descriptor) }
    let text = Array("\(count)".utf8)
    try #require(unsafe write(descriptor, text, text.count) == text.count)
  }
}

extension AddressSpace {
  /// A space whose failures stay inside a region, so that a test can look at them.
  static func forTests() throws(PinError) -> AddressSpace { try forTests(patience: Configuration().patience) }

  static func forTests(patience: Double) throws(PinError) -> AddressSpace {
    // Slices much smaller than regions of tests, which are much smaller than those of programs.
    try forTests(patience: patience, armingSlice: ArmingSlice(pages: 64, mostPages: 64, runs: 3))
  }

  /// Regions of a few pages are cut as those of programs are that have hundreds of megabytes.
  static func forTests(slices: RegionSlices) throws(PinError) -> AddressSpace {
    try forTests(
      patience: Configuration().patience, armingSlice: ArmingSlice(pages: 64, mostPages: 64, runs: 3), slices: slices)
  }

  static func forTests(
    patience: Double, armingSlice: ArmingSlice, slices: RegionSlices = .automatic
  ) throws(PinError) -> AddressSpace {
    Tally.begin()
    var configuration = Configuration()
    configuration.patience = patience
    configuration.failurePolicy = .failRegion
    configuration.armingSlice = armingSlice
    configuration.slices = slices
    configuration.logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
    return try AddressSpace(configuration: configuration)
  }
}
