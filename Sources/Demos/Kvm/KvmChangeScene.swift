internal import Foundation
internal import Guest
internal import PinKit
internal import Terminal

/// Pages that are made read-only, and discarded, while the guest writes them.
struct KvmChangeScene: DemoScene {
  let title = "pages that change under the guest"
  private let turns = 20

  struct Outcome {
    /// Words of read-only pages that changed all the same.
    var changed = 0
    /// How often the guest came to a page that it may not write, and the turns in which it did not.
    var stops = 0
    var unstopped = 0
    /// Words that hold neither what was last stored nor, where that was before the page's last discard, zero.
    var wrong = 0
    var checked = 0
    var discards = 0
    var stores = UInt64(0)
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "While the guest writes, pages are made read-only: it comes to a standstill there, and goes on when it may. Others are discarded: they "
        + "read as zeros until it comes by again.")
    var outcome = Outcome()
    try KvmMemory.with(.pool, pages: 68) { try play($0, &outcome) }
    return DemoFindings(showing: Self.judge(outcome), on: stage)
  }

  private func play(_ region: Region, _ outcome: inout Outcome) throws {
    let tracker = try region.trackWrites()
    let guest = GuestThread(in: region)
    guest.start()
    defer { try? guest.stop() }
    KvmWait.until { guest.progress > 0 || guest.failure != nil }
    let walk = guest.walk
    var wiped = [UInt64](repeating: 0, count: region.pageCount)
    for turn in 0..<turns {
      let page = walk.pages.lowerBound + turn * 13 % walk.pages.count
      func held() throws -> [UInt64] {
        try walk.words(in: region).enumerated().filter { walk.page(of: $0.0) == page }.map(\.1)
      }
      let stops = guest.forbiddenStores
      try region.protect(page..<page + 1)
      let before = try held()
      let isStopped = KvmWait.until { guest.forbiddenStores > stops + 1 || guest.failure != nil }
      outcome.unstopped += isStopped && guest.failure == nil ? 0 : 1
      outcome.changed += zip(before, try held()).count { $0 != $1 }
      _ = try tracker.collect()
      try region.protect(page..<page + 1, to: .readWrite)
      let other = walk.pages.lowerBound + turn * 29 % walk.pages.count
      try region.discard(other..<other + 1)
      wiped[other] = guest.horizon
      outcome.discards += 1
    }
    let goal = guest.progress + 1
    KvmWait.until { guest.progress >= goal || guest.failure != nil }
    try guest.stop()
    outcome.stops = guest.forbiddenStores
    outcome.stores = guest.progress
    for (word, held) in try walk.words(in: region).enumerated() {
      let expected = walk.expected(word, after: guest.progress)
      outcome.checked += 1
      if held != expected, held != 0 || expected > wiped[walk.page(of: word)] { outcome.wrong += 1 }
    }
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "W1", claim: "guest: nothing lands on a page once it is read-only",
        holds: outcome.stops > 0 && outcome.unstopped == 0 && outcome.changed == 0,
        evidence:
          "\(outcome.changed) words changed; the guest was stopped \(outcome.stops.grouped) times, and in \(outcome.unstopped) turns not at all."
      ),
      Claim(
        contract: "W5", claim: "guest: no store is lost or made twice where pages were forbidden or discarded",
        holds: outcome.checked > 0 && outcome.discards > 0 && outcome.stores > 0 && outcome.wrong == 0,
        evidence:
          "\(outcome.wrong) of \(outcome.checked.grouped) words are wrong after \(outcome.stores.grouped) stores and \(outcome.discards) discards."
      ),
    ]
  }
}

enum KvmWait {
  /// Waits until `condition` holds, for half a minute at most; false if it does not.
  @discardableResult
  static func until(_ condition: () -> Bool) -> Bool {
    let end = Date(timeIntervalSinceNow: 30)
    while !condition() {
      if Date() > end { return false }
      Thread.sleep(forTimeInterval: 0.000_1)
    }
    return true
  }
}
