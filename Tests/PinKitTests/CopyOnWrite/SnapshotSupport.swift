import Glibc
import Synchronization
import Testing

@testable import PinKit

extension Combination {
  /// Those that can act at a fault.
  static let snapshots = all.filter { $0.mechanism != .asynchronous }
  static let discardableSnapshots = snapshots.filter(\.subject.canDiscard)
}

extension Region {
  /// Fills pages with bytes that say which page and which version it is, 64 words of a page, each another.
  func write(version: UInt64, to pages: some Sequence<Int>) throws {
    try unsafe withUnsafeMutableBytes { bytes in
      for page in pages {
        for offset in Pattern.offsets(pageSize) {
          unsafe bytes.storeBytes(
            of: Pattern.word(page, version, offset), toByteOffset: page * pageSize + offset, as: UInt64.self)
        }
      }
    }
  }
}

/// The words of a page in a version; version 0 is all zeros.
enum Pattern {
  static func offsets(_ pageSize: Int) -> StrideTo<Int> { stride(from: 0, to: pageSize, by: pageSize / 64) }

  static func word(_ page: Int, _ version: UInt64, _ offset: Int) -> UInt64 {
    version == 0 ? 0 : version << 40 | UInt64(page) << 16 | UInt64(offset >> 3 & 0xffff)
  }

  static func matches(_ bytes: UnsafeRawBufferPointer, _ page: Int, _ version: UInt64) -> Bool {
    for offset in offsets(bytes.count)
    where unsafe bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self) != word(page, version, offset) {
      return false
    }
    return true
  }
}

extension Snapshot {
  /// The pages of which the snapshot does not hold that version.
  func pages(unlike version: (Int) -> UInt64) throws -> [Int] {
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: pageCount * pageSize, alignment: 4096)
    defer { unsafe buffer.deallocate() }
    unsafe try copy(0..<pageCount, into: buffer)
    return (0..<pageCount).filter { page in
      let bytes = unsafe UnsafeRawBufferPointer(rebasing: buffer[(page * pageSize)..<((page + 1) * pageSize)])
      return unsafe !Pattern.matches(bytes, page, version(page))
    }
  }

  /// The same, page by page.
  func singlePages(unlike version: (Int) -> UInt64) throws -> [Int] {
    try (0..<pageCount).filter { page in
      let bytes = try read(page)
      return unsafe !bytes.withUnsafeBytes { unsafe Pattern.matches($0, page, version(page)) }
    }
  }

  func word(_ page: Int, _ offset: Int = 0) throws -> UInt64 {
    unsafe try read(page).withUnsafeBytes { unsafe $0.load(fromByteOffset: offset, as: UInt64.self) }
  }
}

/// The code that a body throws; `nil` if it throws none.
func code(_ body: () throws -> Void) -> PinError.Code? {
  do { try body() } catch let error as PinError { return error.code } catch {}
  return nil
}
