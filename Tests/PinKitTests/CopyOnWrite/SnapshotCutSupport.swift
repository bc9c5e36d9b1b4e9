import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Threads that write numbers without end, in an order that everybody can work out: what a region held at one moment tells how far
/// each had come, and then what every other word must have held.
///
/// Each writer has a few words in every page. Its stores are numbered from 1, and store `n` goes to its word `order[n % count]`. So a
/// moment is exact if, with `n` the largest number of a writer anywhere, each of its words holds the largest number up to `n`
/// that goes to it.
final class CutWriters: Sendable {
  private let region: Region
  private let order: [Int]
  private let writers: Int
  /// By writer: the number of the store that is about to be made, and of the last that was made.
  private let begun: PageNumbers
  private let made: PageNumbers
  private let isOver = Shared()
  private let threads = Mutex<[TestThread]>([])

  static let wordsOfAPage = 3

  /// Whether they write through a pointer of their own, so that unmapping the region does not wait for them.
  private let isForeign: Bool

  init(_ region: Region, writers: Int, seed: UInt64, isForeign: Bool = false) {
    self.isForeign = isForeign
    self.region = region
    self.writers = writers
    var random = SeededRandom(seed: seed)
    order = (0..<region.pageCount * Self.wordsOfAPage).shuffled(using: &random)
    begun = PageNumbers(count: writers)
    made = PageNumbers(count: writers)
  }

  /// Words of a page are spread over it, so that one that is copied while it changes is found out.
  private func offset(_ word: Int, _ writer: Int) -> Int {
    let (page, slot) = (word / Self.wordsOfAPage, word % Self.wordsOfAPage)
    return page * region.pageSize + slot * (region.pageSize / Self.wordsOfAPage & ~7) + writer * 8
  }

  func start() {
    threads.withLock { threads in
      threads = (0..<writers).map { writer in TestThread { try self.write(writer) } }
    }
  }

  private func write(_ writer: Int) throws {
    if isForeign {
      let start = unsafe UnsafeMutableRawPointer(bitPattern: region.addresses.start)
      return unsafe write(writer, UnsafeMutableRawBufferPointer(start: start, count: region.addresses.count))
    }
    try unsafe region.withUnsafeMutableBytes { unsafe write(writer, $0) }
  }

  private func write(_ writer: Int, _ bytes: UnsafeMutableRawBufferPointer) {
    while isOver.value == 0 {
      Tally.add(.operations, 64)
      for _ in 0..<64 {
        begun.increment(writer)
        let number = begun[writer]
        let place = unsafe bytes.baseAddress! + offset(order[Int(number) % order.count], writer)
        ct_store_in_order(UInt64(UInt(bitPattern: place)), number)
        made.increment(writer)
      }
    }
  }

  func stop() throws {
    isOver.value = 1
    for thread in threads.withLock({ $0 }) { try thread.join() }
  }

  /// How far every writer is for sure.
  var progress: [UInt64] { made.snapshot }
  /// How far it can be at most.
  var horizon: [UInt64] { begun.snapshot }

  /// What is wrong with a snapshot that was taken between two looks at the writers; `nil` if it is one moment in between.
  func flaw(in snapshot: Snapshot, after progress: [UInt64], before horizon: [UInt64]) throws -> String? {
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: region.addresses.count, alignment: 8)
    defer { unsafe bytes.deallocate() }
    unsafe try snapshot.copy(0..<region.pageCount, into: bytes)
    return unsafe flaw(in: UnsafeRawBufferPointer(bytes), after: progress, before: horizon)
  }

  private func flaw(
    in bytes: UnsafeRawBufferPointer, after progress: [UInt64], before horizon: [UInt64]
  ) -> String? {
    for writer in 0..<writers {
      let held = order.map { unsafe bytes.load(fromByteOffset: offset($0, writer), as: UInt64.self) }
      let latest = held.max() ?? 0
      if latest < progress[writer] { return "writer \(writer) is at \(latest), it was at \(progress[writer]) before" }
      if latest > horizon[writer] { return "writer \(writer) is at \(latest), it was at \(horizon[writer]) after" }
      Tally.add(.checks, held.count)
      let count = UInt64(order.count)
      for (index, number) in held.enumerated() {
        // The largest number up to the latest that goes to this word.
        let back = (latest + count - UInt64(index)) % count
        let expected = latest > back ? latest - back : 0
        if number != expected {
          return
            "page \(order[index] / Self.wordsOfAPage) holds \(number) of writer \(writer), at \(latest) it held \(expected)"
        }
      }
    }
    return nil
  }
}
