internal import CFloor
import Foundation
import PinKit

/// A file in the temporary directory, every page of it in the page cache; removed with the object.
final class FloorFile: Sendable {
  let path: String
  let pages: Int
  private let descriptor: CInt

  init(pages: Int) throws {
    let directory = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp"
    path = "\(directory)/pinctl-bench-\(UInt64.random(in: .min ... .max))"
    self.pages = pages
    descriptor = unsafe path.withCString { unsafe cfloor_file_make($0, pages) }
    guard descriptor >= 0 else { throw BenchFault(description: "making \(path) failed with errno \(-descriptor)") }
  }

  deinit {
    cfloor_file_close(descriptor)
    try? FileManager.default.removeItem(atPath: path)
  }

  /// Writes runs of pages of memory back by io_uring, and fdatasync(2); ns in all.
  func writeBack(_ runs: [Range<Int>], from base: UInt64, depth: UInt32) throws -> Double {
    let pairs = runs.flatMap { [UInt64($0.lowerBound), UInt64($0.count)] }
    // The array's bytes are used only during the call.
    let time = unsafe cfloor_file_write(descriptor, base, pairs, runs.count, depth)
    guard time >= 0 else { throw BenchFault(description: "writing \(path) failed with errno \(-time)") }
    return Double(time)
  }

  /// pread(2) of each page of `order`; ns a page.
  func read(_ order: [UInt32], into buffer: UInt64) throws -> Double {
    let time = unsafe cfloor_file_read(descriptor, buffer, order, order.count)
    guard time >= 0 else { throw BenchFault(description: "reading \(path) failed") }
    return time
  }

  /// Loads a word of each page of `order` through mmap(2); ns a page.
  func readMapped(_ order: [UInt32]) throws -> Double {
    let time = unsafe cfloor_file_mmap_read(descriptor, pages, order, order.count)
    guard time >= 0 else { throw BenchFault(description: "mapping \(path) failed with errno \(-time)") }
    return time
  }

  /// A handler thread that fills `around` pages a fault; on the other core if it `hopsCores`.
  func fill(around: Int, hopsCores: Bool = false) throws -> FloorFill {
    try FloorFill(self, descriptor, around: around, hopsCores: hopsCores)
  }
}

/// The floor's own file-backed memory.
@safe final class FloorFill: @unchecked Sendable {  // fixed once made, but for the pages, which one thread at a time forgets
  private let fill: OpaquePointer
  private let file: FloorFile
  private let core: CInt

  fileprivate init(_ file: FloorFile, _ descriptor: CInt, around: Int, hopsCores: Bool) throws {
    guard let made = unsafe cfloor_fill_start(descriptor, file.pages, around, hopsCores ? 1 : -1) else {
      throw BenchFault(description: "the floor's handler could not be started")
    }
    unsafe fill = made
    core = hopsCores ? 0 : -1
    self.file = file
  }

  deinit { unsafe cfloor_fill_stop(fill) }

  /// Loads a word of each page of `order`, all of which are missing; ns a page.
  func read(_ order: [UInt32]) -> Double {
    forget()
    return unsafe cfloor_fill_read(fill, order, order.count, core)
  }

  /// All pages are missing again.
  func forget() { unsafe cfloor_fill_forget(fill) }

  /// Where the memory is.
  var base: UInt64 { unsafe cfloor_fill_base(fill) }
}
