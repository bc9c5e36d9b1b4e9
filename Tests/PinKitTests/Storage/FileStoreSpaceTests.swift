import CTestSupport
import Foundation
import SystemPackage
import Testing

@testable import PinKit

private let page = Memory.pageSize

@Suite("FileStore: space") struct FileStoreSpaceTests {
  private static let obstacle = LoopFileSystem.Kind.ext4.obstacle

  @Test(
    "N3: a page that was made writable can be written back, however full the file system is then",
    .skipped(if: obstacle), arguments: [LoopFileSystem.Kind.ext4, .xfs])
  func reserved(_ kind: LoopFileSystem.Kind) throws {
    let system = try LoopFileSystem(kind)
    let store = try FileStore(path: system("file"), creating: 2000 * page)
    #expect(store.reservesSpace && !store.pageMakeWritableNow(0..<1))
    try store.pageMakeWritable(0..<100)
    try store.pageMakeWritable(333..<334)
    #expect(fileSize(system("file")) == 2000 * page)
    try system.occupy(leaving: 0)
    expect(.outOfSpace, "Free space") { for index in 500..<2000 { try store.pageMakeWritable(index..<index + 1) } }
    try store.pageMakeWritable(0..<100)
    let buffer = try PageBuffer(101)
    for index in 0..<101 { buffer[index] = UInt64(index + 1) }
    #expect(store.write([buffer.transfer(0..<100, at: 0), buffer.transfer(333..<334, at: 100)]) == [nil, nil])
    try store.flush()
    for index in 0..<100 { #expect(try store.get(index) == UInt64(index + 1)) }
    #expect(try store.get(333) == 101)
  }

  @Test("N3: while there is no room for 64 KiB, space for the page alone is taken", .skipped(if: obstacle))
  func lastBlocks() throws {
    let system = try LoopFileSystem(.ext4, make: ["-b", "4096", "-O", "^has_journal"])
    let store = try FileStore(path: system("file"), creating: 2000 * page)
    try store.put(0, 1)  // the blocks of the file's own tree
    try store.pageMakeWritable(1600..<1601)
    try store.flush()
    try system.occupy(leaving: 12 * page)
    var taken = 0
    for index in stride(from: 101, to: 1600, by: 64) {
      do { try store.pageMakeWritable(index..<index + 1) } catch { break }
      taken += 1
    }
    #expect((1..<16).contains(taken), "\(taken) pages")
  }

  @Test("N3: what is reserved costs nothing twice") func once() throws {
    let directory = try ImageDirectory()
    let store = try FileStore(path: directory("file"), creating: 1000 * page)
    try store.pageMakeWritable(17..<18)
    #expect(allocatedSize(directory("file")) == FileStore.reservationStep)
    // Would take it again if it asked again.
    try RawFile.punch(directory("file"), 0..<1000 * page)
    try store.pageMakeWritable(17..<18)
    try store.pageMakeWritable(16..<32)
    #expect(allocatedSize(directory("file")) == 0)
    try store.pageMakeWritable(15..<16)
    #expect(allocatedSize(directory("file")) == FileStore.reservationStep)
    expect(.outOfBounds) { try store.pageMakeWritable(999..<1001) }
    // A file without holes has its space.
    try store.pageMakeWritable(0..<1000)
    try RawFile.write([UInt8](repeating: 1, count: 10 * page), directory("full"))
    let full = try FileStore(path: directory("full"))
    #expect(!full.reservesSpace && full.pageMakeWritableNow(0..<1))
    let option = try FileStore(path: directory("other"), creating: page, options: .init { $0.reservesSpace = false })
    try option.pageMakeWritable(0..<1)
    #expect(allocatedSize(directory("other")) == 0)
  }

  @Test(
    "a full file system fails the transfers it has no room for, and no others; with room they succeed",
    .skipped(if: obstacle), arguments: [false, true])
  func outOfSpace(_ isDirect: Bool) throws {
    let system = try LoopFileSystem(.ext4, make: ["-b", "4096"])
    let options = FileStore.Options { $0.direct = isDirect ? .required : .never }
    let store = try FileStore(path: system("file"), creating: 1500 * page, options: options)
    let buffer = try PageBuffer(1500)
    for index in 0..<1500 { buffer[index] = UInt64(index + 1) }
    #expect(store.write([buffer.transfer(100..<200, at: 100)]) == [nil])
    try store.flush()
    try system.occupy(leaving: 40 * page)
    // Neighbours: one operation, of which only a part has room.
    let runs = stride(from: 0, to: 1500, by: 4).map { $0..<$0 + 4 }
    let outcomes = store.write(runs.map { buffer.transfer($0, at: $0.lowerBound) })
    for (run, outcome) in zip(runs, outcomes) {
      if 100..<200 ~= run.lowerBound { #expect(outcome == nil, "pages \(run) have their space") }
      if let outcome { #expect(outcome.code == .outOfSpace && !outcome.advice.isEmpty) }
    }
    let failed = outcomes.count { $0 != nil }
    #expect((300..<350).contains(failed), "\(failed) of 375 failed")
    for (run, outcome) in zip(runs, outcomes) where outcome == nil {
      for index in run { #expect(try store.get(index) == UInt64(index + 1)) }
    }
    try FileManager.default.removeItem(atPath: system("ballast"))
    try store.flush()
    let again = zip(runs, outcomes).filter { $1 != nil }.map { buffer.transfer($0.0, at: $0.0.lowerBound) }
    #expect(store.write(again).allSatisfy { $0 == nil })
    try store.flush()
    for index in stride(from: 0, to: 1500, by: 7) { #expect(try store.get(index) == UInt64(index + 1)) }
  }

  @Test(
    "a used-up quota is out of space, for a reservation and for a write",
    .skipped(if: LoopFileSystem.Kind.btrfs.obstacle),
    .enabled(if: SystemProgram.path("btrfs") != nil, "there is no btrfs"))
  func quota() throws {
    let system = try LoopFileSystem(.btrfs)
    try SystemProgram.run("btrfs", "quota", "enable", system.directory)
    let store = try FileStore(path: system("file"), creating: 300 * page)
    try SystemProgram.run("btrfs", "qgroup", "limit", "400K", system.directory)
    func outcome(_ pages: Range<Int>) -> PinError? {
      do throws(PinError) { try store.pageMakeWritable(pages) } catch { return error }
      return nil
    }
    #expect(outcome(0..<16) == nil)
    let refused = try #require(outcome(16..<300))
    #expect(refused.code == .outOfSpace && refused.errno == .diskQuotaExceeded)
    let buffer = try PageBuffer(300)
    for index in 0..<300 { buffer[index] = 4 }
    let outcomes = store.write((0..<300).map { buffer.transfer($0..<$0 + 1, at: $0) })
    #expect(outcomes[0..<16].allSatisfy { $0 == nil }, "what is reserved")
    #expect(Set(outcomes.compactMap { $0?.code }) == [.outOfSpace])
    #expect(Set(outcomes.compactMap { $0?.errno }) == [.diskQuotaExceeded])
  }
}

extension FileStore {
  /// In bytes.
  fileprivate static var reservationStep: Int { SpaceReservations.step * Memory.pageSize }
}
