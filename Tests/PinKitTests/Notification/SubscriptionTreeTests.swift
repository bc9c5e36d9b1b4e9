import Testing

@testable import PinKit

/// Who is found.
@Suite("Subscription trees") struct SubscriptionTreeTests {
  private final class Nobody: MMUNotifier {}

  /// A small seeded generator.
  private struct Source: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return state
    }
  }

  @Test("N14: a table finds everyone who overlaps, nobody else, and everyone once", arguments: [0, 1, 2, 3, 7, 40, 300])
  func finds(count: Int) {
    var source = Source(state: UInt64(count) + 42)
    for longest in [1, 5, 40, 500] {
      let subscribers = (0..<count).map { _ in
        let start = Int.random(in: 0..<500, using: &source)
        return Subscriber(Nobody(), start..<start + Int.random(in: 1...longest, using: &source))
      }
      let split = count / 3
      let table = SubscriptionTable(
        settled: .init(Array(subscribers.dropFirst(split))), recent: .init(Array(subscribers.prefix(split))))
      for _ in 0..<200 {
        let start = Int.random(in: 0..<600, using: &source)
        let pages = start..<start + Int.random(in: 1...longest, using: &source)
        var found: [Subscriber] = []
        table.forEach(overlapping: pages) {
          found.append($0)
          return true
        }
        let expected = subscribers.filter { $0.pages.overlaps(pages) }
        #expect(Set(found.map(ObjectIdentifier.init)) == Set(expected.map(ObjectIdentifier.init)))
        #expect(found.count == expected.count)
        // In the same order again, and no further than asked.
        var again: [Subscriber] = []
        table.forEach(overlapping: pages) {
          again.append($0)
          return again.count < 2
        }
        #expect(again.map(ObjectIdentifier.init) == found.prefix(2).map(ObjectIdentifier.init))
      }
    }
  }

  @Test("N2: a range that was kept is not taken for one of another thread's callbacks") func numbers() throws {
    let own = Kernel.nextOperation()
    let other = Shared()
    let thread = TestThread { other.value = Int(Kernel.nextOperation()) }
    try thread.join()
    #expect(own != UInt64(other.value) && Kernel.nextOperation() == own + 1)
  }
}
