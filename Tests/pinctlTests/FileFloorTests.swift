import CFloor
import Foundation
import PinKit
import Testing

@Suite("The floors of pinctl bench file") struct FileFloorTests {
  private let pages = 70
  private let order = (0..<70).map { UInt32($0 * 37 % 70) }

  private func withFile(_ body: (CInt) throws -> Void) throws {
    let path = "\(FileManager.default.temporaryDirectory.path)/pinctl-floor-\(UInt64.random(in: .min ... .max))"
    let file = unsafe path.withCString { unsafe cfloor_file_make($0, pages) }
    try #require(file >= 0)
    defer {
      cfloor_file_close(file)
      try? FileManager.default.removeItem(atPath: path)
    }
    try body(file)
  }

  private func word(_ base: UInt64, _ page: Int) -> UInt64 {
    unsafe UnsafePointer<UInt64>(bitPattern: UInt(base) + UInt(page * 4096))!.pointee
  }

  private func expected(_ page: Int) -> UInt64 { UInt64(page * 512) &* 0x9e37_79b9_7f4a_7c15 }

  @Test(
    "a handler thread fills what the file holds, whatever it fills around a fault, once and again",
    .enabled(
      if: (try? Userfaultfd.availableFeatures().contains(.wpHugetlbfsShmem)) == true, "needs userfaultfd (Linux 5.19)"),
    arguments: [(1, -1), (1, 0), (4, -1), (64, -1)])
  func filling(around: Int, core: CInt) throws {
    try withFile { file in
      let fill = unsafe try #require(unsafe cfloor_fill_start(file, pages, around, core))
      for _ in 0..<2 {
        #expect(unsafe cfloor_fill_read(fill, order, order.count, core) > 0)
        for page in 0..<pages { #expect(word(unsafe cfloor_fill_base(fill), page) == expected(page)) }
        unsafe cfloor_fill_forget(fill)
      }
      unsafe cfloor_fill_stop(fill)
    }
  }

  @Test("runs are written to their places and to no others, and read by pread and by a mapping") func writing() throws {
    try withFile { file in
      let memory = cfloor_map(pages, 0, 1)
      defer { cfloor_unmap(memory, pages) }
      let runs: [UInt64] = [3, 1, 10, 20, 69, 1]
      #expect(unsafe cfloor_file_write(file, memory, runs, 3, 2) > 0)
      #expect(unsafe cfloor_file_mmap_read(file, pages, order, order.count) > 0)
      let buffer = cfloor_map(1, 0, 1)
      defer { cfloor_unmap(buffer, 1) }
      for page in 0..<pages {
        #expect(unsafe cfloor_file_read(file, buffer, [UInt32(page)], 1) > 0)
        let isWritten = page == 3 || page == 69 || 10..<30 ~= page
        #expect(word(buffer, 0) == (isWritten ? UInt64(page) : expected(page)), "page \(page)")
      }
    }
  }
}
