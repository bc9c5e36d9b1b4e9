import Synchronization
import Testing

@testable import PinKit

/// Counts what it is told, and notes what it should not be.
private final class CountingNotifier: MMUNotifier {
  let starts = Shared()
  let ends = Shared()
  let middles = Shared()
  private let isGone = Shared()
  private let findings: Findings
  init(_ findings: Findings) { self.findings = findings }

  func noteRemoved() { isGone.value = 1 }
  private func look() { if isGone.value == 1 { findings.note("a callback came after remove() had returned") } }

  func invalidateRangeStart(_ range: InvalidationRange) -> InvalidationResponse {
    look()
    starts.add()
    return .done
  }
  func invalidateRange(_ range: InvalidationRange) {
    look()
    middles.add()
  }
  func invalidateRangeEnd(_ range: InvalidationRange) {
    look()
    if ends.add() > starts.value { findings.note("an end came without its start") }
  }
}

/// Subscribers come and go by the thousand while everything changes.
@Suite("Subscribers that come and go") struct SubscriptionChurnTests {
  private struct Weak: Sendable { weak var notifier: CountingNotifier? }

  private static func change(_ region: Region, _ index: Int, while condition: () -> Bool) throws -> [String: Int] {
    var random = SeededRandom(seed: Seed.of(40 + index))
    var done: [String: Int] = [:]
    let tracker = index == 0 ? try region.trackWrites() : nil
    while condition() || done.count < (index == 0 ? 4 : 3) {
      let page = Int.random(in: 0..<48, using: &random) * 2 + index
      switch Int.random(in: 0..<12, using: &random) {
      case 0:
        try region.clone().unmap()
        done["clone", default: 0] += 1
      case 1 where index == 0:
        _ = try tracker?.collect()
        done["collect", default: 0] += 1
      case 2, 3:
        try region.protect(page..<page + 1)
        try region.protect(page..<page + 1, to: .readWrite)
        done["protect", default: 0] += 2
      case 4, 5:
        try region.discard(page..<page + 1)
        done["discard", default: 0] += 1
      default: try region.setWord(page, 0, 1)
      }
    }
    return done
  }

  @Test("N9/N14: those that stay miss nothing, those that leave hear nothing after it, and nobody is kept")
  func churn() throws {
    let findings = Findings()
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 96)
    for page in 0..<96 { try region.setWord(page, 0, 0) }
    let keeper = try region.clone()
    let stayers = [0..<96, 0..<48, 48..<96, 20..<21].map { pages in
      let notifier = CountingNotifier(findings)
      return (notifier, pages, try? region.subscribe(notifier, to: pages))
    }
    let weak = Mutex<[Weak]>([])
    let remaining = Shared(2)
    let done = Mutex<[String: Int]>([:])
    let changers = (0..<2).map { index in
      TestThread {
        let own = try Self.change(region, index) { remaining.value > 0 }
        done.withLock { $0.merge(own, uniquingKeysWith: +) }
      }
    }
    let churners = (0..<2).map { index in
      TestThread {
        defer { remaining.add(-1) }
        var random = SeededRandom(seed: Seed.of(index))
        var held: [(CountingNotifier, Subscription)] = []
        for step in 0..<1000 {
          let notifier = CountingNotifier(findings)
          let start = Int.random(in: 0..<95, using: &random)
          held.append((notifier, try region.subscribe(notifier, to: start..<Int.random(in: start + 1...96, using: &random))))
          if step % 8 == 0 { weak.withLock { $0.append(Weak(notifier: notifier)) } }
          while held.count > (step < 999 ? Int.random(in: 0...6, using: &random) : 0) {
            let (notifier, subscription) = held.remove(at: Int.random(in: 0..<held.count, using: &random))
            subscription.remove()
            notifier.noteRemoved()
          }
        }
      }
    }
    for thread in churners + changers { try thread.join() }
    #expect(findings.all == [])
    let counts = done.withLock { $0 }
    for (notifier, pages, _) in stayers {
      #expect(notifier.starts.value == notifier.ends.value, "of \(pages)")
      #expect(notifier.middles.value >= notifier.ends.value)
    }
    // Once or more: an operation begins again where somebody subscribes in the middle.
    #expect(stayers[0].0.starts.value >= counts["protect", default: 0] + counts["discard", default: 0])
    #expect(counts.count == 4)
    for (_, _, subscription) in stayers { subscription?.remove() }
    #expect(weak.withLock { $0.contains { $0.notifier != nil } } == false, "a subscriber that left is kept")
    try keeper.unmap()
    try space.close()
  }

  @Test("remove() waits for a callback that is running, and what comes later is nobody's", arguments: [false, true])
  func waits(isEnd: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let isInside = Shared()
    let mayLeave = Shared()
    let stay: @Sendable () -> Void = {
      isInside.value = 1
      if !spin(until: { mayLeave.value == 1 }) { Issue.record("nobody lets the callback go on") }
    }
    let recorder = RecordingNotifier(
      { _ in
        if !isEnd { stay() }
        return .done
      }, end: { _ in if isEnd { stay() } })
    let subscription = try region.subscribe(recorder)
    let change = TestThread { try region.protect(0..<1) }
    #expect(spin { isInside.value == 1 })
    let remover = TestThread { subscription.remove() }
    #expect(spin { remover.isAsleep }, "it does not wait")
    #expect(!remover.hasEnded)
    mayLeave.value = 1
    try remover.join()
    try change.join()
    let calls = recorder.take().map(\.kind)
    #expect(calls == (isEnd ? [.start, .middle, .end] : [.start]))
    try region.protect(0..<1, to: .readWrite)
    #expect(recorder.take() == [])
    try space.close()
  }

  private final class Silent: MMUNotifier {}
  private final class Leaver: Sendable {
    private let notifier = Mutex<Weakly>(Weakly())
    private struct Weakly: Sendable { weak var notifier: Silent? }
    func watch(_ notifier: Silent) { self.notifier.withLock { $0.notifier = notifier } }
    var isThere: Bool { notifier.withLock { $0.notifier != nil } }
  }

  @Test("N14: a change under way keeps who leaves in the middle of it, until somebody comes or goes after it")
  func leaves() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let leaver = Leaver()
    let leaving = Mutex<[Subscription]>([])
    let (calls, kept) = (Shared(), Shared())
    let subscription = try region.subscribe(
      RecordingNotifier({ _ in
        guard calls.add() == 1 else { return .done }
        let thread = TestThread {
          var all = leaving.withLock { list in
            defer { list = [] }
            return list
          }
          while let next = all.popLast() { next.remove() }
        }
        try thread.join()
        kept.value = leaver.isThere ? 1 : 0
        return .done
      }))
    // Whoever goes after it has the old tables looked through.
    for _ in 0..<3 {
      let other = try region.subscribe(Silent())
      leaving.withLock { $0.append(other) }
    }
    do {
      let notifier = Silent()
      leaver.watch(notifier)
      let last = try region.subscribe(notifier)
      leaving.withLock { $0.append(last) }
    }
    try region.protect(0..<1)
    #expect(calls.value == 1)
    #expect(kept.value == 1, "it was let go of under a reader")
    subscription.remove()
    #expect(!leaver.isThere, "a subscriber that left is kept")
    try space.close()
  }

  /// Goes together with a subscription of its own.
  private final class Owner: MMUNotifier {
    private let other: Subscription
    init(_ other: Subscription) { self.other = other }
  }

  @Test("A subscriber goes as soon as it has left, and may take other subscriptions with it")
  func owners() throws {
    let findings = Findings()
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let inner = CountingNotifier(findings)
    var subscription: Subscription? = try region.subscribe(Owner(try region.subscribe(inner)), to: 0..<4)
    try region.protect(0..<1)
    #expect(inner.starts.value == 1)
    subscription?.remove()
    subscription = nil
    try region.protect(0..<1, to: .readWrite)
    #expect(inner.starts.value == 1, "what the subscriber owned is still there")
    try space.close()
  }
}
