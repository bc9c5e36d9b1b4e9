import CTestSupport
import Foundation
import SystemPackage
import Testing

@testable import PinKit

private let page = Memory.pageSize

@Suite("FileStore") struct FileStoreTests {
  private let directory: ImageDirectory
  init() throws { directory = try ImageDirectory() }

  @Test(
    "what is written is read back, by the same store and the next, whatever the size",
    arguments: [
      1, 511, 4096, 4097, 3 * 4096, 100 * 4096 + 5,
    ])
  func roundTrip(_ size: Int) throws {
    let path = directory("file")
    let buffer = try PageBuffer(101)
    do {
      let store = try FileStore(path: path, creating: size)
      #expect(store.geometry.byteCount == size && !store.geometry.isReadOnly && store.geometry.needsDirtyTracking)
      #expect(store.geometry.atomicUnit == 512 || store.geometry.atomicUnit == 4096)
      for index in 0..<store.geometry.pageCount { buffer[index] = UInt64(index) &* 0x0101_0101_0101 + 0x7777 }
      let transfers = (0..<store.geometry.pageCount).reversed().map { buffer.transfer($0..<$0 + 1, at: $0) }
      #expect(store.write(transfers).allSatisfy { $0 == nil })
      try store.flush()
    }
    #expect(fileSize(path) == size, "the last page must not be written behind its end")
    let store = try FileStore(path: path)
    #expect(store.geometry.byteCount == size)
    let found = try PageBuffer(1)
    for index in 0..<store.geometry.pageCount {
      found[0] = .max
      try store.fill(found, 0..<1, from: index..<index + 1)
      let rest = min(page, size - index * page)
      #expect((0..<rest).allSatisfy { found.byte(0, $0) == buffer.byte(index, $0) })
      #expect(found.isZero(0, from: rest), "behind the end of the file are zeros")
      found[0] = .max
      #expect(store.fillNow(found, 0..<1, from: index..<index + 1))
      #expect((0..<rest).allSatisfy { found.byte(0, $0) == buffer.byte(index, $0) } && found.isZero(0, from: rest))
    }
  }

  @Test("neighbours in any order, runs that are cut, and pages in between that nobody writes")
  func shapes() throws {
    let store = try FileStore(path: directory("file"), creating: 2000 * page)
    let buffer = try PageBuffer(2000)
    for index in 0..<2000 { buffer[index] = UInt64(index + 1) }
    let runs = [1000..<1700, 0..<3, 4..<5, 3..<4, 700..<1000, 1999..<2000, 600..<601]
    #expect(store.write(runs.map { buffer.transfer($0, at: $0.lowerBound) }) == Array(repeating: nil, count: 7))
    let found = try PageBuffer(2000)
    try store.fill(found, 0..<2000, from: 0..<2000)
    for index in 0..<2000 {
      #expect(found[index] == (runs.contains { $0.contains(index) } ? UInt64(index + 1) : 0), "page \(index)")
    }
    #expect(store.write([]).isEmpty)
  }

  @Test("pages that are not there, and memory that does not fit, fail alone") func refusals() throws {
    let store = try FileStore(path: directory("file"), creating: 4 * page)
    let buffer = try PageBuffer(8)
    for index in 0..<8 { buffer[index] = 5 }
    let short = PageTransfer(pages: 0..<2, memory: buffer.transfer(0..<1, at: 0).memory)
    let outcomes = store.write([buffer.transfer(3..<5, at: 0), buffer.transfer(1..<2, at: 0), short])
    #expect(outcomes.map { $0?.code } == [.outOfBounds, nil, .invalidArgument])
    #expect(try store.get(1) == 5)
    #expect(fileSize(directory("file")) == 4 * page)
    expect(.outOfBounds) { try store.fill(buffer, 0..<1, from: 4..<5) }
    expect(.invalidArgument) { try store.fill(buffer, 0..<1, from: 0..<2) }
    #expect(!store.fillNow(buffer, 0..<1, from: 4..<5))
  }

  @Test("opening: what is not there, is empty, is no file, has another size") func opening() throws {
    expect(.notFound, "Check the path") { _ = try FileStore(path: directory("none")) }
    expect(.invalidArgument) { _ = try FileStore(path: directory.path) }
    expect(.invalidArgument) { _ = try FileStore(path: "") }
    expect(.invalidArgument) { _ = try FileStore(path: directory("file"), creating: 0) }
    try RawFile.write([], directory("empty"))
    expect(.invalidArgument, "how large") { _ = try FileStore(path: directory("empty")) }
    #expect(try FileStore(path: directory("empty"), creating: 10).geometry.byteCount == 10)
    expect(.geometryMismatch, "10 bytes") { _ = try FileStore(path: directory("empty"), creating: 11) }
    try #require(unsafe mkfifo(directory("fifo"), 0o600) == 0)
    expect(.invalidArgument, "neither") { _ = try FileStore(path: directory("fifo")) }
    expect(.notFound) {
      _ = try FileStore(path: directory("none"), creating: 4096, options: .init { $0.isReadOnly = true })
    }
  }

  @Test("one store writes at a time; readers do not mind; the lock goes with the store") func exclusive() throws {
    let path = directory("file")
    var first: FileStore? = try FileStore(path: path, creating: 2 * page)
    try first?.put(0, 9)
    expect(.inUse, "close that one") { _ = try FileStore(path: path) }
    expect(.inUse) { _ = try FileStore(path: path, creating: 2 * page, options: .init { $0.direct = .preferred }) }
    let reader = try FileStore(path: path, options: .init { $0.isReadOnly = true })
    #expect(try reader.get(0) == 9)
    first = nil
    _ = try FileStore(path: path)
  }

  @Test("a read-only store writes nothing, and says so") func readOnly() throws {
    let path = directory("file")
    try FileStore(path: path, creating: 2 * page).put(1, 3)
    let store = try FileStore(path: path, options: .init { $0.isReadOnly = true })
    #expect(store.geometry.isReadOnly)
    expect(.readOnly) { try store.put(1, 4) }
    expect(.readOnly) { try store.pageMakeWritable(0..<1) }
    try store.flush()
    #expect(try store.get(1) == 3)
  }

  @Test("a store of a descriptor is one of its own, with the rights of the descriptor") func descriptor() throws {
    let path = directory("file")
    try FileStore(path: path, creating: 2 * page).put(1, 3)
    var descriptor = try FileDescriptor.open(FilePath(path), .readOnly)
    expect(.readOnly, "read-only store") { _ = try FileStore(descriptor: descriptor) }
    let reader = try FileStore(descriptor: descriptor, options: .init { $0.isReadOnly = true })
    try descriptor.close()
    #expect(try reader.get(1) == 3)
    descriptor = try FileDescriptor.open(FilePath(path), .readWrite)
    let writer = try FileStore(descriptor: descriptor)
    expect(.inUse) { _ = try FileStore(path: path) }
    try descriptor.close()
    try FileManager.default.removeItem(atPath: path)
    try writer.put(0, 8)
    try writer.flush()
    #expect(try reader.get(0) == 8)
  }

  @Test(
    "K2: reading what is cached allocates nothing",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has its own allocator"))
  func allocations() async throws {
    await #expect(processExitsWith: .success) {
      let directory = try ImageDirectory()
      let store = try FileStore(path: directory("file"), creating: 8 * 4096 - 7)
      let buffer = try PageBuffer(8)
      func reads() {
        for index in 0..<8 { check(store.fillNow(buffer, 0..<1, from: index..<index + 1), "read") }
      }
      try store.put(3, 1)
      try store.fill(buffer, 0..<8, from: 0..<8)
      reads()
      Kernel.enterFaultPath()
      ct_watch_allocations { Kernel.isInFaultPath ? 1 : 0 }
      for index in 0..<8 where !store.fillNow(buffer, 0..<1, from: index..<index + 1) { ct_exit(9) }
      let count = ct_watched_allocations()
      ct_watch_allocations { 0 }
      Kernel.leaveFaultPath()
      check(count, is: 0)
    }
  }

  @Test("what is not cached is not read now, and asked for") func notCached() throws {
    let path = directory("file")
    let store = try FileStore(path: path, creating: 64 * page)
    let buffer = try PageBuffer(64)
    for index in 0..<64 { buffer[index] = UInt64(index + 1) }
    #expect(store.write([buffer.transfer(0..<64, at: 0)]) == [nil])
    try store.flush()
    let descriptor = try FileDescriptor.open(FilePath(path), .readOnly)
    defer { try? descriptor.close() }
    try #require(posix_fadvise(descriptor.rawValue, 0, 0, POSIX_FADV_DONTNEED) == 0)
    let found = try PageBuffer(1)
    found[0] = 77
    if store.fillNow(found, 0..<1, from: 50..<51) {
      #expect(found[0] == 51)  // a file system in memory
    }
    #expect(spin { store.fillNow(found, 0..<1, from: 50..<51) }, "nobody asked the device for it")
    #expect(found[0] == 51)
  }
}
