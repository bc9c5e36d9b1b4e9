import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

private let hasUserfaultfd = (try? Userfaultfd(features: [], access: [.device, .systemCall])) != nil
private let hasSecretMemory = (try? SecretMapping(count: 4096))?.isSecretMemory == true

/// Copies of the API between adopted memory and memory of the program's that the kernel must not take hold of.
@Suite("Copies between adopted and other memory") struct AdoptedCopyTests {
  /// The bytes of a page of adopted memory that come late.
  private final class Late: Sendable {
    let bytes: ForeignMemory
    let descriptor: Userfaultfd
    init() throws {
      bytes = try ForeignMemory(.adoptedAnonymous, pages: 1)
      descriptor = try Userfaultfd(features: [])
      try descriptor.register(bytes.range, for: .missing)
    }
    func awaitReader() {
      var waiting = pollfd(fd: descriptor.descriptor, events: Int16(POLLIN), revents: 0)
      while unsafe poll(&waiting, 1, 1000) != 1 {}
    }
    func arrive() throws {
      let page = try Mapping(count: 4096)
      ct_store(UInt64(page.range.start), 9)
      #expect(try descriptor.copy(from: page.range.start, to: bytes.range) == .done)
    }
    func close() { bytes.unmap() }
  }

  private static func bytes(of region: Region, _ pages: Range<Int>) -> UnsafeMutableRawBufferPointer {
    let range = region.addressesUnchecked(of: pages)
    return unsafe UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: range.start), count: range.count)
  }

  /// The kernel may not take hold of the target before it has the source: meanwhile the target is protected again.
  @Test(
    "W5, W6: what is copied out of adopted memory into a tracked page is in the next set",
    .enabled(if: hasUserfaultfd, "needs a userfaultfd that also serves system calls"), arguments: Mechanisms.all)
  func collections(_ mechanism: WriteTracking.Mechanism) throws {
    let late = try Late()
    defer { late.close() }
    let space = try AddressSpace.forTests()
    let source = try space.adopt(late.bytes.range)
    let target = try space.map(mechanism == .asynchronous ? .anonymous(hugePages: .never) : .pool, pages: 4)
    try target.fill(with: 1)
    let tracker = try target.trackWrites(mechanism)
    try target.fill(with: 1)
    let failure = Mutex<PinError?>(nil)
    let thread = HostThread {
      do throws(PinError) { try unsafe source.copy(fromByteOffset: 0, into: Self.bytes(of: target, 1..<2)) } catch {
        failure.withLock { $0 = error }
      }
    }
    late.awaitReader()
    let before = try tracker.collect()
    try late.arrive()
    thread.join()
    #expect(failure.withLock { $0 } == nil)
    #expect(try target.byte(1) == 9)
    #expect(try tracker.collect().runs == [1..<2], "the copy arrived after a collection that had \(before.runs)")
    try tracker.stop()
    try space.close()
  }

  @Test(
    "W6: a snapshot of adopted memory that is read into a tracked page is in the next set, and into one of a snapshot in no snapshot",
    arguments: Mechanisms.synchronous)
  func snapshots(_ mechanism: WriteTracking.Mechanism) throws {
    let memory = try ForeignMemory(.adoptedAnonymous, pages: 4)
    defer { memory.unmap() }
    let space = try AddressSpace.forTests()
    let source = try space.adopt(memory.range)
    let target = try space.map(.pool, pages: 4)
    try source.fill(with: 9)
    try target.fill(with: 1)
    let tracker = try target.trackWrites(mechanism)
    let old = try target.snapshot(SnapshotOptions(mechanism: mechanism))
    let snapshot = try source.snapshot()
    _ = try tracker.collect()
    try unsafe snapshot.copy(1..<3, into: Self.bytes(of: target, 1..<3))
    #expect(try tracker.collect().runs == [1..<3])
    #expect(try (0..<4).map { try old.read($0)[0] } == [1, 1, 1, 1])
    try unsafe source.copy(fromByteOffset: 0, into: Self.bytes(of: target, 0..<1))
    #expect(try tracker.collect().runs == [0..<1])
    #expect(try old.read(0)[0] == 1)
    #expect(try (0..<4).map { try target.byte($0) } == [9, 9, 9, 1])
    try target.protect(3..<4, to: .readOnly)
    #expect(errorCode { try unsafe source.copy(fromByteOffset: 0, into: Self.bytes(of: target, 3..<4)) } == .accessDenied)
    snapshot.close()
    old.close()
    try tracker.stop()
    try space.close()
  }

  @Test(
    "K6: memory that the kernel takes no hold of can be copied into adopted memory, and from it",
    .enabled(if: hasSecretMemory, "needs memfd_secret(2)"), arguments: Mechanisms.all)
  func secrets(_ mechanism: WriteTracking.Mechanism) throws {
    let secret = try SecretMapping(count: 3 * 4096)
    let memory = try ForeignMemory(.adoptedAnonymous, pages: 4)
    defer { memory.unmap() }
    let range = secret.range
    let bytes = unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: range.start), count: range.count)
    for offset in 0..<range.count { unsafe bytes[offset] = UInt8(truncatingIfNeeded: offset &* 7 &+ offset >> 12) }
    let space = try AddressSpace.forTests()
    let region = try space.adopt(memory.range)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    _ = try tracker.collect()
    try unsafe region.copy(UnsafeRawBufferPointer(rebasing: bytes[100..<8400]), toByteOffset: 4000)
    let isSame1 = try (0..<8300).allSatisfy { try unsafe region.byte(0, at: 4000 + $0) == bytes[100 + $0] }
    #expect(isSame1)
    #expect(try tracker.collect().runs == [0..<4])
    // The other way, and of a source that is adopted itself.
    try unsafe region.copy(fromByteOffset: 4000, into: UnsafeMutableRawBufferPointer(rebasing: bytes[200..<8500]))
    let isSame2 = try (0..<8300).allSatisfy { try unsafe region.byte(0, at: 4000 + $0) == bytes[200 + $0] }
    #expect(isSame2)
    let other = try space.adopt(range)
    try unsafe other.copy(fromByteOffset: 200, into: Self.bytes(of: region, 0..<2))
    let isSame3 = try (0..<8192).allSatisfy { try unsafe region.byte(0, at: $0) == bytes[200 + $0] }
    #expect(isSame3)
    #expect(try tracker.collect().runs == [0..<2])
    try other.unmap()
    try tracker.stop()
    try space.close()
  }

  @Test("K6: a source that cannot be read is named as the cause") func unreadableSource() throws {
    let memory = try ForeignMemory(.adoptedAnonymous, pages: 2)
    let hole = try Mapping(count: 2 * 4096)
    defer { memory.unmap() }
    #expect(Memory.protect(AddressRange(start: hole.range.start + 4096, count: 4096), []) == 0)
    let space = try AddressSpace.forTests()
    let region = try space.adopt(memory.range)
    let bytes = unsafe UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: hole.range.start), count: 8192)
    #expect(errorCode { try unsafe region.copy(bytes, toByteOffset: 0) } == .invalidArgument)
    try region.unmap()
    try space.close()
  }
}
