import Synchronization
import Testing

@testable import PinKit

/// Who is found by what they subscribe to.
@Suite("The subscription table") struct SubscriptionTableTests {
  private final class Quiet: MMUNotifier {}

  private static func range(in count: Int, _ random: inout SeededRandom) -> Range<Int> {
    let start = Int.random(in: 0..<count, using: &random)
    let longest = random.chance(80) ? 4 : count
    return start..<min(count, start + Int.random(in: 1...longest, using: &random))
  }

  @Test("N14: a query finds those that overlap, each once, and nobody else, always in the same order")
  func queries() {
    var random = SeededRandom(seed: 14)
    let quiet = Quiet()
    for _ in 0..<400 {
      let pages = Int.random(in: 1...200, using: &random)
      let levels = (0..<2).map { _ in
        (0..<Int.random(in: 0...60, using: &random)).map { _ in Subscriber(quiet, Self.range(in: pages, &random)) }
      }
      let table = SubscriptionTable(settled: .init(levels[0]), recent: .init(levels[1]))
      let all = levels.joined()
      for _ in 0..<20 {
        let query = Self.range(in: pages, &random)
        var found: [ObjectIdentifier] = []
        table.forEach(overlapping: query) {
          found.append(ObjectIdentifier($0))
          return true
        }
        let expected = Set(all.filter { $0.pages.overlaps(query) }.map { ObjectIdentifier($0) })
        #expect(Set(found) == expected && found.count == expected.count)
        // Whoever wants no more is asked no more.
        let limit = Int.random(in: 0...found.count, using: &random)
        var first: [ObjectIdentifier] = []
        table.forEach(overlapping: query) {
          if first.count == limit { return false }
          first.append(ObjectIdentifier($0))
          return true
        }
        #expect(first == Array(found.prefix(limit)))
      }
    }
  }

  /// Says which pages it was asked about.
  private final class Asked: MMUNotifier {
    let asked = Mutex<[Range<Int>]>([])
    func testYoung(_ pages: Range<Int>, of region: Region) -> Bool {
      asked.withLock { $0.append(pages) }
      return true
    }
    func take() -> [Range<Int>] {
      asked.withLock { list in
        defer { list = [] }
        return list
      }
    }
  }

  @Test("N14: the same through a region, while subscribers come and go")
  func region() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 256)
    var random = SeededRandom(seed: 15)
    var live: [(notifier: Asked, pages: Range<Int>, subscription: Subscription)] = []
    // More than the small level of the table holds.
    for step in 0..<2200 {
      if step < 1300 || random.chance(30) {
        let pages = Self.range(in: 256, &random)
        let notifier = Asked()
        live.append((notifier, pages, try region.subscribe(notifier, to: pages)))
      } else if !live.isEmpty {
        live.remove(at: Int.random(in: 0..<live.count, using: &random)).subscription.remove()
      }
      guard step % 40 == 0 else { continue }
      let query = Self.range(in: 256, &random)
      let answer = try region.testYoung(query)
      #expect(answer == live.contains { $0.pages.overlaps(query) })
      for entry in live {
        #expect(entry.notifier.take() == (entry.pages.overlaps(query) ? [query.clamped(to: entry.pages)] : []))
      }
    }
    live = []
    #expect(try !region.testYoung(0..<256))
    try space.close()
  }
}
