import CTestSupport
import Foundation
import Testing

@testable import PinKit

private let page = Memory.pageSize

/// Regions over real files that run out of space, disappear, shrink, or are replaced.
@Suite("Regions over files that fail") struct FileDeviceTests {
  private static let obstacle = LoopFileSystem.Kind.ext4.obstacle

  @Test(
    "N3: where space is reserved, a full file system refuses the writer, and never a flush",
    .skipped(if: obstacle))
  func reserved() throws {
    let system = try LoopFileSystem(.ext4, make: ["-b", "4096"])
    let store = try FileStore(path: system("file"), creating: 1500 * page)
    #expect(store.reservesSpace)
    let space = try AddressSpace.forTests()
    let region = try space.map(.file(store, fillAround: .exact), pages: 1500)
    try system.occupy(leaving: 40 * page)
    var written: [Int] = []
    var refused: Int?
    for index in 0..<1500 where refused == nil {
      do throws(PinError) {
        try region.setByte(9, index)
        written.append(index)
      } catch {
        #expect(error.code == .outOfSpace)
        refused = index
      }
    }
    let first = try #require(refused)
    #expect(written.count > 10)
    #expect(try region.byte(first) == 0, "who may not write may read")
    try region.flush()
    #expect(try !region.filePageState(first).isDirty)
    try FileManager.default.removeItem(atPath: system("ballast"))
    #expect(spin { (try? region.setByte(10, first)) != nil })
    try region.unmap()
    let buffer = try PageBuffer(first + 1)
    try store.fill(buffer, 0..<first + 1, from: 0..<first + 1)
    #expect((0...first).allSatisfy { buffer.byte($0, 0) == ($0 == first ? 10 : 9) })
    try space.close()
  }

  @Test(
    "where it is not, the flush says so, nothing is lost, others go on, and with room the next flush succeeds",
    .skipped(if: obstacle))
  func unreserved() throws {
    let system = try LoopFileSystem(.ext4, make: ["-b", "4096"])
    let store = try FileStore(path: system("file"), creating: 1500 * page, options: .init { $0.reservesSpace = false })
    let space = try AddressSpace.forTests()
    let region = try space.map(.file(store), pages: 1500)
    let elsewhere = UnrulyStore(pages: 8)
    let other = try space.map(.file(elsewhere), pages: 8)
    try system.occupy(leaving: 40 * page)
    for index in 0..<1500 { region.poke(UInt8(truncatingIfNeeded: index % 250 + 1), index) }
    for _ in 0..<2 { #expect(errorCode { try region.flush() } == .outOfSpace) }
    #expect(errorCode { try region.unmap() } == .outOfSpace)
    let dirty = try (0..<1500).count { try region.filePageState($0).isDirty }
    #expect(dirty > 1000, "\(dirty) pages are dirty")
    #expect(try region.reclaim(0..<1500) == 1500 - dirty, "what the file has not got stays")
    #expect((0..<1500).allSatisfy { region.peek($0) == UInt8(truncatingIfNeeded: $0 % 250 + 1) })
    other.poke(77, 3)
    try other.flush()
    #expect(elsewhere.durableByte(3) == 77)
    try FileManager.default.removeItem(atPath: system("ballast"))
    try region.flush()
    try region.unmap()
    let buffer = try PageBuffer(1500)
    try store.fill(buffer, 0..<1500, from: 0..<1500)
    #expect((0..<1500).allSatisfy { buffer.byte($0, 0) == UInt8(truncatingIfNeeded: $0 % 250 + 1) })
    try space.close()
  }

  @Test(
    "a file system that stops: pages stay dirty and readable, what is not there is an error, others go on",
    .skipped(if: obstacle), arguments: [false, true])
  func shutDown(isDirect: Bool) throws {
    let system = try LoopFileSystem(.ext4)
    let store = try FileStore(
      path: system("file"), creating: 300 * page, options: .init { $0.direct = isDirect ? .required : .never })
    let space = try AddressSpace.forTests()
    var region: Region? = try space.map(.file(store, fillAround: .exact), pages: 300)
    let other = try space.map(.file(UnrulyStore(pages: 8)), pages: 8)
    do {
      let region = try #require(region)
      for index in 0..<40 { try region.setByte(5, index) }
      try region.flush()
      for index in 0..<20 { try region.setByte(6, index) }
      try #require(unsafe ct_shut_down(system.directory) == 0)
      for _ in 0..<2 { #expect(errorCode { try region.flush() } == .inputOutput) }
      #expect(try (0..<20).allSatisfy { try region.filePageState($0).isDirty })
      #expect(try region.reclaim(0..<300) <= 20)
      #expect((0..<20).allSatisfy { region.peek($0) == 6 }, "what the file has not got is still there")
      #expect(errorCode { _ = try region.byte(250) } == .inputOutput)
      #expect(errorCode { try region.setByte(1, 251) } == .inputOutput)
      #expect(errorCode { _ = try region.pin(252..<253) } == .inputOutput)
      #expect(errorCode { _ = try region.clone() } == .inputOutput)
      #expect(errorCode { try region.unmap() } == .inputOutput)
      #expect(region.peek(3) == 6)
    }
    other.poke(7, 3)
    try other.flush()
    try other.unmap()
    // The only way to give up what cannot be written.
    region = nil
    try space.close()
  }

  @Test("a truncated file: pages behind its end are errors, never zeros, and those before it go on") func truncated() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(40)
      for signal in [SIGBUS, SIGSEGV] { _ = ct_handle(signal, CInt(ct_siginfo)) }
      let directory = try ImageDirectory()
      try RawFile.write([UInt8](repeating: 3, count: 64 * 4096), directory("file"))
      let store = try FileStore(path: directory("file"))
      let space = try AddressSpace.forTests()
      // Large windows: the buffers have other pages' bytes in them.
      var region: Region? = try space.map(.file(store, fillAround: .block(16)), pages: 64)
      let address = UInt64(region!.addresses.start)
      check(ct_try_load(address), is: 3)
      check(unsafe truncate(directory("file"), 20 * 4096 + 10), is: 0)
      for page: UInt64 in [20, 21, 40, 63] {
        for offset: UInt64 in [0, 4095] { check(ct_try_load(address + page * 4096 + offset), is: -SIGBUS, "page \(page)") }
      }
      check(errorCode { _ = try region!.byte(50) }, is: .fileChanged)
      check(errorCode { try region!.setByte(1, 51) }, is: .fileChanged)
      for page: UInt64 in 0..<20 { check(ct_try_load(address + page * 4096), is: 3, "page \(page)") }
      check(ct_try_store(address + 5 * 4096, 4), is: 0)
      check(errorCode { try region!.flush() }, is: .fileChanged)
      try check(region!.filePageState(5).isDirty, is: true)
      check(errorCode { try region!.unmap() }, is: .fileChanged)
      check(ct_try_load(address + 5 * 4096), is: 4)
      check(fileSize(directory("file")), is: 20 * 4096 + 10, "it was not made longer again")
      region = nil
      try space.close()
    }
  }

  @Test(
    "a file that is replaced by rename(2): the bytes of the old one go on, and the flush says that nobody will find them")
  func replaced() throws {
    let directory = try ImageDirectory()
    try RawFile.write([UInt8](repeating: 3, count: 64 * page), directory("file"))
    let store = try FileStore(path: directory("file"))
    let space = try AddressSpace.forTests()
    let region = try space.map(.file(store, fillAround: .exact), pages: 64)
    #expect(region.peek(1) == 3)
    try RawFile.write([UInt8](repeating: 8, count: 64 * page), directory("new"))
    try FileManager.default.moveItem(atPath: directory("file"), toPath: directory("old"))
    try #require(unsafe rename(directory("new"), directory("file")) == 0)
    #expect((0..<64).allSatisfy { region.peek($0) == 3 })
    region.poke(4, 7)
    #expect(errorCode { try region.flush() } == .fileChanged)
    #expect(try region.filePageState(7).isDirty)
    #expect(errorCode { try region.unmap() } == .fileChanged)
    #expect(region.peek(7) == 4)
    #expect(try RawFile.read(directory("file")).allSatisfy { $0 == 8 }, "the new file is nobody's business")
    try #require(unsafe rename(directory("old"), directory("file")) == 0)
    try region.unmap()
    #expect(try RawFile.read(directory("file"))[7 * page] == 4)
    try space.close()
  }
}
