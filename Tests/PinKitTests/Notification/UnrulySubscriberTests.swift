import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Subscribers that are slow, refuse, throw and leave, all at once, beside a shadow of the memory. `PINKIT_UNRULY_ROUNDS` sets for how
/// long.
@Suite("Unruly subscribers", .serialized) struct UnrulySubscriberTests {
  @Test("W5/N4/N9: whatever subscribers do, no write is lost and every start has its end", arguments: Mechanisms.synchronous)
  func stress(_ mechanism: WriteTracking.Mechanism) throws {
    let run = try UnrulyRun(mechanism)
    try run.go(rounds: environmentNumber("PINKIT_UNRULY_ROUNDS", or: 250))
    for finding in run.findings.all { Issue.record("\(finding) (\(mechanism))") }
    #expect(run.refusals.value > 0 && run.failures.value > 0)
  }
}

private struct Whim: Error {}

/// Does what comes into its mind, and keeps count all the same.
private final class UnrulyNotifier: MMUNotifier {
  private let seed: UInt64
  private let turns = Atomic<UInt64>(0)
  private let refusals: Shared
  /// How often it refuses yet.
  private let mood = Shared()
  private let findings: Findings
  let open = Shared()
  let hasLeft = Shared()
  let subscription = Mutex<Subscription?>(nil)

  init(_ seed: UInt64, _ refusals: Shared, _ findings: Findings) {
    self.seed = seed
    self.refusals = refusals
    self.findings = findings
  }

  func invalidateRangeStart(_ range: InvalidationRange) throws -> InvalidationResponse {
    var random = SeededRandom(seed: Seed.base &+ seed &+ turns.add(1, ordering: .relaxed).newValue &* 977)
    if mood.value > 0 {
      mood.add(-1)
      refusals.add()
      Tally.add(.faults)
      return .wouldBlock
    }
    switch Int.random(in: 0..<100, using: &random) {
    case ..<4:
      mood.value = Int.random(in: 1...6, using: &random)
      return .wouldBlock
    case ..<8:
      Tally.add(.faults)
      throw Whim()
    case ..<20:
      let end = Kernel.now() + UInt64.random(in: 1_000...100_000, using: &random)
      while Kernel.now() < end { Kernel.relax() }
    case ..<22 where range.isBlockable:
      hasLeft.value = 1
      subscription.withLock { $0 }?.remove()
      return .done
    default: break
    }
    open.add()
    return .done
  }

  func invalidateRangeEnd(_ range: InvalidationRange) {
    if open.add(-1) < 0, hasLeft.value == 0 { findings.note("an end came for a start that was not answered with done") }
  }
}

private final class UnrulyRun: Sendable {
  private static let pages = 48
  let findings = Findings()
  let refusals = Shared()
  let failures = Shared()
  private let space: AddressSpace
  private let region: Region
  private let mirror: SecondaryMMU
  private let window: DirectMapping
  private let tracker: WriteTracker
  private let log = ChangeLog(pageCount: 48)
  private let isOver = Shared()
  private let writes = [Shared(), Shared()]
  private let mechanism: WriteTracking.Mechanism

  init(_ mechanism: WriteTracking.Mechanism) throws {
    space = try AddressSpace.forTests()
    region = try space.map(.pool, pages: Self.pages)
    for page in 0..<Self.pages { try region.setWord(page, 0, 0) }
    tracker = try region.trackWrites(mechanism)
    mirror = try SecondaryMMU(region)
    window = try DirectMapping(region, pages: 30..<36)
    self.mechanism = mechanism
  }

  /// Until no subscriber has a say against it.
  private func insist(_ body: () throws -> Void) throws {
    while true {
      do { return try body() } catch let error as PinError where error.code == .subscriberFailed { failures.add() }
    }
  }

  /// One writer's own words: every second page, the first word by the processor, the others by the mirror and the window.
  private func write(_ index: Int) throws {
    var random = SeededRandom(seed: Seed.of(60 + index))
    var shadow: [[UInt64]] = Array(repeating: [0, 0, 0], count: Self.pages)
    var stamp: UInt64 = 0
    while isOver.value == 0, findings.isEmpty {
      stamp += 1
      let page = Int.random(in: 0..<Self.pages / 2, using: &random) * 2 + index
      let isWindowed = window.pages.contains(page)
      try log.change(page) {
        switch Int.random(in: 0..<20, using: &random) {
        case ..<2:
          try insist { try region.discard(page..<page + 1) }
          shadow[page] = [0, 0, 0]
        case ..<8:
          try mirror.setWord(page, 1, stamp)
          shadow[page][1] = stamp
        case ..<14 where isWindowed:
          try window.setWord(page, 2, stamp)
          shadow[page][2] = stamp
        default:
          try region.setWord(page, 0, stamp)
          shadow[page][0] = stamp
        }
      }
      writes[index].add()
      Tally.add(.operations)
      Tally.add(.checks, 6)
      let look = Int.random(in: 0..<Self.pages / 2, using: &random) * 2 + index
      for word in 0..<3 {
        let seen = try word == 2 && window.pages.contains(look) ? window.word(look, 2) : region.word(look, word)
        let mirrored = try mirror.word(look, word)
        if seen != shadow[look][word] || mirrored != shadow[look][word] {
          findings.note("page \(look), word \(word): \(shadow[look][word]) was written, \(seen) and \(mirrored) are there")
        }
      }
    }
  }

  func go(rounds: Int) throws {
    let writers = (0..<2).map { index in TestThread { [self] in try write(index) } }
    defer {
      isOver.value = 1
      for writer in writers { try? writer.join() }
    }
    var random = SeededRandom(seed: Seed.of(44))
    var unruly: [UnrulyNotifier] = []
    for round in 0..<rounds where findings.isEmpty && !writers.contains(where: \.hasEnded) {
      // Both writers get on between any two changes.
      let before = writes.map(\.value)
      defer {
        _ = spin {
          zip(writes, before).allSatisfy { $0.value > $1 + 4 } || !findings.isEmpty || writers.contains(where: \.hasEnded)
        }
      }
      unruly.removeAll { $0.hasLeft.value == 1 }
      while unruly.count < 4 { unruly.append(try subscribe(&random)) }
      switch round % 6 {
      case 0:
        try insist {
          let clone = try region.clone(mechanism: mechanism)
          let first = try (0..<Self.pages).map { try clone.word($0) }
          if try (0..<Self.pages).map({ try clone.word($0) }) != first { findings.note("a clone changes") }
          try clone.unmap()
        }
      case 1: try insist { try region.snapshot().close() }
      case 2:
        try insist { try region.protect(46..<47, to: .readWrite) }
      case 3: try insist { _ = try region.tryProtect(0..<4, to: .readWrite) }
      default: try collect()
      }
    }
    isOver.value = 1
    for writer in writers { try writer.join() }
    try collect()
    for notifier in unruly {
      notifier.subscription.withLock { $0 }?.remove()
      if notifier.hasLeft.value == 0, notifier.open.value != 0 { findings.note("\(notifier.open.value) starts have no end") }
      notifier.subscription.withLock { $0 = nil }
    }
    try space.close()
  }

  private func subscribe(_ random: inout SeededRandom) throws -> UnrulyNotifier {
    let notifier = UnrulyNotifier(random.next(), refusals, findings)
    let start = Int.random(in: 0..<40, using: &random)
    let made = try region.subscribe(notifier, to: start..<Int.random(in: start + 1...48, using: &random))
    notifier.subscription.withLock { $0 = made }
    return notifier
  }

  private static func covered() -> Mutex<[UInt64]> { Mutex([UInt64](repeating: 0, count: pages)) }
  private let coveredChanges = covered()

  /// Changes that were complete are in this set, unless an earlier one that came after their begin has had them.
  private func collect() throws {
    let finished = log.finished.snapshot
    try insist {
      let set = try tracker.collect()
      let started = log.started.snapshot
      coveredChanges.withLock { covered in
        for page in 0..<Self.pages {
          if !set.contains(page), finished[page] > covered[page] {
            findings.note("change \(finished[page]) of page \(page) was complete, and is in no collection")
          }
          if set.contains(page) { covered[page] = started[page] }
        }
      }
    }
  }
}
