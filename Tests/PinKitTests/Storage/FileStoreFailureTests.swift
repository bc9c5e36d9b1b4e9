import CTestSupport
import CUffd
import Foundation
import Testing

@testable import PinKit

private let page = Memory.pageSize

@Suite("FileStore: what fails") struct FileStoreFailureTests {
  private let directory: ImageDirectory
  init() throws { directory = try ImageDirectory() }
  private static let obstacle = LoopFileSystem.Kind.ext4.obstacle

  @Test("a failed flush is not made good by another one: only by writing again what it may have lost")
  func failedFlush() async {
    await #expect(processExitsWith: .success) {
      let directory = try ImageDirectory()
      let store = try FileStore(path: directory("file"), creating: 64 * 4096)
      let code: (() throws -> Void) -> PinError.Code? = { body in
        do { try body() } catch { return (error as? PinError)?.code }
        return nil
      }
      try store.put(1, 1)
      try store.flush()
      try store.put(2, 1)
      try store.put(3, 1)
      cuffd_inject(CInt(cuffd_call_sync.rawValue), EIO, 0, 1)
      check(code { try store.flush() }, is: .inputOutput)
      cuffd_inject(0, 0, 0, 0)
      check(code { try store.flush() }, is: .inputOutput, "nothing was written again")
      try store.put(2, 1)
      check(code { try store.flush() }, is: .inputOutput, "page 3 was not written again")
      try store.put(3, 1)
      check(code { try store.flush() }, is: nil)
      try store.put(3, 2)
      check(code { try store.flush() }, is: nil)
    }
  }

  @Test("a write that was under way when a flush failed does not vouch for its pages") func racedFlush() throws {
    let account = try WriteAccount(pageCount: 100, mustSyncDirectory: false)
    let buffer = try PageBuffer(1)
    let transfers = [buffer.transfer(7..<8, at: 0)]
    // Begins, a sync takes it, and ends while that sync fails.
    let ticket = account.begin(transfers)
    let runs = account.beginSync()
    #expect(runs == [7..<8])
    account.failed(runs)
    account.end(ticket, transfers) { _ in true }
    #expect(account.lost.runs == [7..<8])
    // Ends after a sync that succeeded without its bytes: the next one answers for it.
    let second = account.begin(transfers)
    _ = account.beginSync()
    account.end(second, transfers) { _ in true }
    #expect(account.lost.isEmpty)
    #expect(account.beginSync() == [7..<8])
    // A write that failed vouches for nothing.
    account.failed([7..<9])
    account.end(account.begin(transfers), transfers) { _ in false }
    #expect(account.lost.runs == [7..<9])
  }

  @Test(
    "a file system that stops: reads, writes and flushes fail with the reason, and never hang",
    .skipped(if: obstacle), arguments: [LoopFileSystem.Kind.ext4, .xfs], [false, true])
  func shutDown(_ kind: LoopFileSystem.Kind, isDirect: Bool) throws {
    let system = try LoopFileSystem(kind)
    let options = FileStore.Options { $0.direct = isDirect ? .required : .never }
    let store = try FileStore(path: system("file"), creating: 300 * page, options: options)
    try store.put(1, 1)
    try store.flush()
    let buffer = try PageBuffer(4)
    for index in 0..<4 { buffer[index] = 2 }
    #expect(store.write([buffer.transfer(4..<5, at: 0)]) == [nil])
    try #require(unsafe ct_shut_down(system.directory) == 0)
    let outcomes = store.write((0..<4).map { buffer.transfer($0 * 8..<$0 * 8 + 1, at: $0) })
    #expect(outcomes.map { $0?.code } == Array(repeating: .inputOutput, count: 4))
    #expect(outcomes.allSatisfy { $0?.advice.isEmpty == false })
    for _ in 0..<3 { expect(.inputOutput) { try store.flush() } }
    expect(.inputOutput) { try store.fill(buffer, 0..<4, from: 200..<204) }
    expect(.inputOutput) { try store.pageMakeWritable(250..<251) }
  }

  @Test(
    "a device that disappears under the store", .skipped(if: LoopDevice.obstacle), arguments: [false, true])
  func lostDevice(_ isDirect: Bool) throws {
    let device = try LoopDevice(size: 4 << 20)
    let store = try FileStore(path: device.path, options: .init { $0.direct = isDirect ? .required : .never })
    let buffer = try PageBuffer(8)
    for index in 0..<8 { buffer[index] = 6 }
    try store.put(3, 5)
    try store.flush()
    // Reads behind the end of the file fail; writes would make it longer, if its file system could.
    try device.truncateBacking(to: 1 << 20)
    for pages in [500..<508, 700..<701] {
      expect(.inputOutput) { try store.fill(buffer, 0..<pages.count, from: pages) }
      #expect(!store.fillNow(buffer, 0..<pages.count, from: pages))
    }
    #expect(try store.get(3) == 5)
  }

  @Test("a truncated file is an error and never old bytes; it is not made longer again") func truncated() throws {
    let path = directory("file")
    let store = try FileStore(path: path, creating: 16 * page)
    let buffer = try PageBuffer(16)
    for index in 0..<16 { buffer[index] = 3 }
    #expect(store.write([buffer.transfer(0..<16, at: 0)]) == [nil])
    try store.flush()
    try #require(unsafe truncate(path, off_t(5 * page + 10)) == 0)
    #expect(try store.get(4) == 3)
    for pages in [5..<6, 4..<6, 12..<16] {
      expect(.fileChanged, "truncated") { try store.fill(buffer, 0..<pages.count, from: pages) }
      #expect(!store.fillNow(buffer, 0..<pages.count, from: pages))
    }
    #expect(
      store.write([buffer.transfer(14..<15, at: 0), buffer.transfer(0..<1, at: 1)]).map { $0?.code } == [
        .fileChanged, .fileChanged,
      ])
    #expect(fileSize(path) == 5 * page + 10)
    expect(.fileChanged, "truncated") { try store.flush() }
    // Once it has its size again, what it lost is still gone.
    try #require(unsafe truncate(path, off_t(16 * page)) == 0)
    expect(.inputOutput, "11 pages") { try store.flush() }
    for index in 0..<16 { buffer[index] = 4 }
    #expect(store.write([buffer.transfer(5..<16, at: 5)]) == [nil])
    try store.flush()
    #expect(try store.get(15) == 4)
  }

  @Test("a file that is deleted, moved or replaced fails the flush, unless that was not asked for") func replaced() throws {
    let path = directory("file")
    let store = try FileStore(path: path, creating: 4 * page)
    try store.put(1, 1)
    try store.flush()
    try FileManager.default.moveItem(atPath: path, toPath: directory("moved"))
    try store.put(1, 2)
    expect(.fileChanged, "path names another file") { try store.flush() }
    try FileManager.default.moveItem(atPath: directory("moved"), toPath: path)
    try store.flush()
    try RawFile.write([UInt8](repeating: 7, count: 4 * page), directory("other"))
    try #require(unsafe rename(directory("other"), path) == 0)
    expect(.fileChanged) { try store.flush() }
    #expect(try store.get(1) == 2, "the store has the file that it opened")
    let trusting = try FileStore(path: path, options: .init { $0.checksName = false })
    try trusting.put(0, 9)
    try FileManager.default.removeItem(atPath: path)
    try trusting.flush()
  }

  @Test("a file system that becomes read-only", .skipped(if: obstacle)) func readOnlyMount()
    throws
  {
    let system = try LoopFileSystem(.ext4)
    try FileStore(path: system("file"), creating: 8 * page).put(2, 2)
    try system.remount("ro")
    expect(.readOnly, "read-only store") { _ = try FileStore(path: system("file")) }
    expect(.readOnly) { _ = try FileStore(path: system("new"), creating: page) }
    let store = try FileStore(path: system("file"), options: .init { $0.isReadOnly = true })
    #expect(try store.get(2) == 2)
  }
}
