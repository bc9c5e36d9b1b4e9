import Foundation
import SystemPackage
import Testing

@testable import PinKit

/// Memory for pages, each of which holds one number over and over: a mixture of two is seen.
final class PageBuffer: Sendable {
  static let size = Memory.pageSize
  private let memory: Mapping
  let count: Int

  init(_ count: Int) throws {
    self.count = count
    memory = try Mapping(count: count * Self.size)
  }

  private func start(_ page: Int) -> UnsafeMutableRawPointer {
    unsafe UnsafeMutableRawPointer(bitPattern: memory.range.start)! + page * Self.size
  }

  subscript(page: Int) -> UInt64? {
    get {
      // The bytes are the same as those eight further on.
      guard unsafe memcmp(start(page), start(page) + 8, Self.size - 8) == 0 else { return nil }
      return unsafe start(page).load(as: UInt64.self)
    }
    set {
      unsafe start(page).initializeMemory(as: UInt64.self, repeating: newValue!, count: Self.size / 8)
    }
  }

  /// A byte of a page, and zero or not of all behind one.
  func byte(_ page: Int, _ offset: Int) -> UInt8 { unsafe start(page).load(fromByteOffset: offset, as: UInt8.self) }
  func isZero(_ page: Int, from offset: Int) -> Bool { (offset..<Self.size).allSatisfy { byte(page, $0) == 0 } }

  func bytes(_ pages: Range<Int>) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(start: start(pages.lowerBound), count: pages.count * Self.size)
  }

  func transfer(_ pages: Range<Int>, at place: Int) -> PageTransfer {
    PageTransfer(
      pages: pages, memory: AddressRange(start: memory.range.start + UInt(place * Self.size), count: pages.count * Self.size)
    )
  }
}

extension FileStore {
  func fill(_ buffer: PageBuffer, _ places: Range<Int>, from pages: Range<Int>) throws(PinError) {
    try unsafe read(pages, into: buffer.bytes(places))
  }

  func fillNow(_ buffer: PageBuffer, _ places: Range<Int>, from pages: Range<Int>) -> Bool {
    unsafe readNow(pages, into: buffer.bytes(places))
  }

  /// Writes one page full of a number.
  func put(_ page: Int, _ value: UInt64) throws {
    let buffer = try PageBuffer(1)
    buffer[0] = value
    if let error = write([buffer.transfer(page..<page + 1, at: 0)])[0] { throw error }
  }

  /// `nil` for a mixture.
  func get(_ page: Int) throws -> UInt64? {
    let buffer = try PageBuffer(1)
    buffer[0] = 0xeeee_eeee_eeee_eeee
    try fill(buffer, 0..<1, from: page..<page + 1)
    return buffer[0]
  }
}

func fileSize(_ path: String) -> Int {
  var info = stat()
  return unsafe stat(path, &info) == 0 ? Int(info.st_size) : -1
}

/// In bytes.
func allocatedSize(_ path: String) -> Int {
  var info = stat()
  return unsafe stat(path, &info) == 0 ? Int(info.st_blocks) * 512 : -1
}
