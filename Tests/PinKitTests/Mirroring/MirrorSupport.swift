import Glibc
import Synchronization

@testable import PinKit

extension SecondaryMMU {
  /// A word of a page, by its number in the page.
  func word(_ page: Int, _ index: Int = 0) throws -> UInt64 {
    try unsafe withBytes(of: page, for: .reading) { unsafe $0.load(fromByteOffset: index * 8, as: UInt64.self) }
  }
  func setWord(_ page: Int, _ index: Int = 0, _ value: UInt64) throws {
    try unsafe withBytes(of: page, for: .writing) {
      unsafe $0.storeBytes(of: value, toByteOffset: index * 8, as: UInt64.self)
    }
  }
}

extension DirectMapping {
  /// A word of a page of the region.
  func word(_ page: Int, _ index: Int = 0) throws -> UInt64 {
    let offset = (page - pages.lowerBound) * region.pageSize + index * 8
    return try unsafe withBytes { unsafe $0.load(fromByteOffset: offset, as: UInt64.self) }
  }
  func setWord(_ page: Int, _ index: Int = 0, _ value: UInt64) throws {
    let offset = (page - pages.lowerBound) * region.pageSize + index * 8
    try unsafe withBytes { unsafe $0.storeBytes(of: value, toByteOffset: offset, as: UInt64.self) }
  }
}

extension Region {
  func word(_ page: Int, _ index: Int = 0) throws -> UInt64 { try load(fromByteOffset: page * pageSize + index * 8) }
  func setWord(_ page: Int, _ index: Int = 0, _ value: UInt64) throws {
    try store(value, toByteOffset: page * pageSize + index * 8)
  }
  /// Where a page's word is, for accesses that the compiler cannot remove.
  func address(_ page: Int, _ index: Int = 0) -> UInt64 { UInt64(addresses.start) + UInt64(page * pageSize + index * 8) }
}

/// Threads that take each step together.
final class Barrier: Sendable {
  private let count: Int
  private let arrived = Atomic<Int>(0)
  private let isAbandoned = Shared()
  init(_ count: Int) { self.count = count }
  /// Nobody waits any more: somebody will not come.
  func abandon() { isAbandoned.value = 1 }
  func wait() {
    let mine = arrived.add(1, ordering: .sequentiallyConsistent).newValue
    let full = (mine + count - 1) / count * count
    while arrived.load(ordering: .sequentiallyConsistent) < full, isAbandoned.value == 0 { sched_yield() }
  }
}
