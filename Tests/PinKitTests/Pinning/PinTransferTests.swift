import Foundation
import SystemPackage
import Testing

@testable import PinKit

private let hasRing = (try? SubmissionRing(entries: 1)) != nil

/// A file of pages of which page *p* holds bytes of the value *p + 1*; removed when dropped.
private struct NumberedFile: ~Copyable {
  let descriptor: FileDescriptor
  let path: String
  init(pages: Int, direct: Bool = false) throws {
    path = "\(Capabilities.temporaryDirectory)/pinkit-transfer-\(UUID().uuidString)"
    let bytes = (0..<pages).flatMap { [UInt8](repeating: UInt8($0 + 1), count: 4096) }
    try Data(bytes).write(to: URL(fileURLWithPath: path))
    let flags = FileDescriptor.OpenOptions(rawValue: direct ? 0o40000 : 0)
    descriptor = try FileDescriptor.open(FilePath(path), .readWrite, options: flags)
  }
  func content() throws -> [UInt8] { [UInt8](try Data(contentsOf: URL(fileURLWithPath: path))) }
  deinit {
    try? descriptor.close()
    try? FileManager.default.removeItem(atPath: path)
  }
}

@Suite("Transfers through pins", .serialized) struct PinTransferTests {
  @Test("A file is read and written through short-term pins, whatever protects the region", arguments: Combination.all)
  func files(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 6) { region in
      try region.fill(with: 200)
      let file = try NumberedFile(pages: 6)
      let tracker = try region.trackWrites(combination.mechanism)
      #expect(try region.read(from: file.descriptor, offset: 4096, into: 100..<8292) == 8192)
      for (offset, value) in [(99, 0), (100, 2), (4195, 2), (4196, 3), (8291, 3), (8292, 0)] {
        #expect(try region.load(fromByteOffset: offset, as: UInt8.self) == UInt8(value), "byte \(offset)")
      }
      #expect(try tracker.collect().runs == [0..<(8291 / region.pageSize + 1)])
      // Beyond the end of the file: short, and what was there stays.
      #expect(try region.read(from: file.descriptor, offset: 5 * 4096 + 96, into: 0..<8192) == 4000)
      #expect(try region.load(fromByteOffset: 3999, as: UInt8.self) == 6)
      #expect(try region.load(fromByteOffset: 4000, as: UInt8.self) == 2)
      #expect(try region.read(from: file.descriptor, offset: 1 << 20, into: 0..<4096) == 0)
      #expect(try region.write(to: file.descriptor, offset: 0, from: 10..<20) == 10)
      #expect(try Array(file.content()[..<11]) == [UInt8](repeating: 6, count: 10) + [1])
      #expect(
        errorCode { _ = try region.read(from: file.descriptor, offset: 0, into: 0..<region.addresses.count + 1) }
          == .outOfBounds)
      #expect((0..<6).allSatisfy { !region.table[$0].isPinned })
      try tracker.stop()
    }
    try space.close()
  }

  @Test(
    "O_DIRECT reads land in the pages of a region that is tracked in place", arguments: Mechanisms.all)
  func direct(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    for backing in [Backing.pool, .anonymous] {
      let region = try space.map(backing, pages: 6)
      let file = try NumberedFile(pages: 6, direct: true)
      let tracker = try region.trackWrites(mechanism)
      #expect(try region.read(from: file.descriptor, offset: 0, into: 0..<6 * 4096) == 6 * 4096)
      #expect(try (0..<6).allSatisfy { try region.load(fromByteOffset: $0 * 4096 + 77, as: UInt8.self) == UInt8($0 + 1) })
      #expect(try tracker.collect().runs == [0..<6])
      #expect(try region.write(to: file.descriptor, offset: 4096, from: 0..<4096) == 4096)
      #expect(try file.content()[4096] == 1)
    }
    try space.close()
  }

  @Test(
    "P3: what READ_FIXED writes between two collections is in the next, and in one after the buffers are closed",
    .enabled(if: hasRing, "needs io_uring"), arguments: Combination.all.filter { $0.subject != .adoptedFile })
  func fixed(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let file = try NumberedFile(pages: 6)
      let tracker = try region.trackWrites(combination.mechanism)
      var buffers = try FixedBuffers(region, [1..<2, 4..<6])
      #expect(try tracker.collect().runs == [1..<2, 4..<6])
      // Protected now; the ring writes all the same.
      try Self.read(&buffers, file.descriptor, 2, into: 0)
      #expect(try region.load(fromByteOffset: region.pageSize, as: UInt8.self) == 3)
      #expect(try tracker.collect().runs == [1..<2, 4..<6])
      let shadow = combination.mechanism == .asynchronous ? nil : try region.snapshot()
      try Self.read(&buffers, file.descriptor, 3, into: 1)
      #expect(try region.load(fromByteOffset: 4 * region.pageSize, as: UInt8.self) == 4)
      if let shadow {
        var bytes = [UInt8](repeating: 0, count: region.pageSize)
        try unsafe bytes.withUnsafeMutableBytes { try unsafe shadow.copy(4..<5, into: $0) }
        #expect(bytes[0] == 1, "the snapshot has what was read after it")
        shadow.close()
      }
      do {
        _ = try buffers.queueRead(from: file.descriptor, at: 0, into: 0, bytes: 0..<region.pageSize + 1)
        Issue.record("a read beyond its buffer was queued")
      } catch let error as PinError { #expect(error.code == .outOfBounds) }
      #expect(errorCode { try region.unmap() } == .pinned)
      try Self.read(&buffers, file.descriptor, 4, into: 0)
      try buffers.close()
      #expect(try tracker.collect().runs == [1..<2, 4..<6])
      #expect(try region.load(fromByteOffset: region.pageSize, as: UInt8.self) == 5)
      #expect(try tracker.collect().isEmpty)
      #expect((0..<8).allSatisfy { !region.table[$0].isPinned })
      try tracker.stop()
    }
    try space.close()
  }

  private static func read(
    _ buffers: inout FixedBuffers, _ file: FileDescriptor, _ page: Int, into buffer: Int
  ) throws {
    let outcome = try buffers.queueRead(from: file, at: page * 4096, into: buffer, bytes: 0..<4096, userData: 5)
    try buffers.submit(waitingFor: 1)
    let completion = buffers.nextCompletion()
    #expect(outcome == .queued && completion == .init(userData: 5, outcome: .done(bytes: 4096)))
  }

  @Test(
    "Buffers that are dropped with operations in flight wait for them, and unpin", .enabled(if: hasRing, "needs io_uring"))
  func dropped() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let (reading, writing) = try FileDescriptor.pipe()
    do {
      var buffers = try FixedBuffers(region, [0..<8])
      let outcome = try buffers.queueWrite(to: writing, at: 0, from: 0, bytes: 0..<64)
      #expect(outcome == .queued)
      try buffers.submit()
    }
    #expect((0..<8).allSatisfy { !region.table[$0].isPinned })
    try reading.close()
    try writing.close()
    try space.close()
  }

  @Test(
    "Locked memory beyond RLIMIT_MEMLOCK is refused with an advice",
    .enabled(if: hasRing && geteuid() == 0, "needs root, to be no longer root"))
  func lockedMemory() async {
    await #expect(processExitsWith: .success) {
      var limit = rlimit(rlim_cur: 16 << 10, rlim_max: 16 << 10)
      check(unsafe setrlimit(__rlimit_resource_t(8), &limit), is: 0)
      check(setuid(65534), is: 0)
      let space = try AddressSpace()
      let region = try space.map(.pool, pages: 64)
      check(errorCode { _ = try FixedBuffers(region, [0..<64]) }, is: .limitReached)
      check(!region.table[0].isPinned, "the pages stayed pinned")
      try space.close()
    }
  }
}
