import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// Translations that are installed while the pages change.
@Suite("Sequence counts") struct SequenceTests {
  /// What happens to page 3 of a clone between the two halves of an installation.
  enum Change: String, CaseIterable, Codable, Sendable {
    case write, discard, deny, snapshot

    func make(_ region: Region) throws {
      switch self {
      case .write: try region.setWord(3, 0, 99)
      case .discard: try region.discard(2..<5)
      case .deny: try region.protect(3..<4, to: .none)
      case .snapshot: try region.snapshot().close()
      }
    }
    /// What a mirror must find then; `nil` if it may not read.
    var value: UInt64? {
      switch self {
      case .write: 99
      case .discard: 0
      case .deny: nil
      case .snapshot: 4
      }
    }
  }

  @Test(
    "N11: a change between readBegin and the installation is noticed, and the translation taken again",
    arguments: Mechanisms.synchronous, Change.allCases)
  func races(_ mechanism: WriteTracking.Mechanism, _ change: Change) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, change = change as Change] in
      ct_deadline(60)
      for (point, isWindow) in [(TestHooks.Point.translating, false), (.translated, false), (.translated, true)] {
        let space = try AddressSpace.forTests()
        let (region, clone) = try sharedPair(space, mechanism)
        // So that a snapshot has something to protect.
        try clone.setWord(4, 0, 5)
        let calls = Shared()
        TestHooks.set(point) { _ in
          if calls.add() == 1 { do { try change.make(clone) } catch { Issue.record("\(error)") } }
        }
        let found = Mutex<UInt64?>(nil)
        let code = errorCode {
          if isWindow {
            let window = try DirectMapping(clone, pages: 3..<5, for: .reading)
            found.withLock { $0 = try? window.word(3) }
            if found.withLock({ $0 }) == nil { _ = try window.word(3) }
          } else {
            let mirror = try SecondaryMMU(clone)
            let word = try mirror.word(3)
            found.withLock { $0 = word }
          }
        }
        TestHooks.set(point, nil)
        check(found.withLock { $0 }, is: change.value, "\(point) \(change) \(isWindow)")
        check(code, is: change.value == nil ? .accessDenied : nil, "\(point) \(change)")
        // One that is denied is not found a second time.
        if change != .deny { check(calls.value >= 2, "\(point) \(change) \(isWindow): it was not tried again") }
        try check(region.word(3), is: 4)
        try space.close()
      }
    }
  }

  /// Who installs by hand: a table of its own behind a lock of its own.
  private final class Device: Sendable {
    struct Table {
      var installed: Set<Int> = []
      var changes: [Int]
    }
    let table: Mutex<Table>
    init(pages: Int) { table = Mutex(Table(changes: [Int](repeating: 0, count: pages))) }

    func invalidate(_ range: InvalidationRange) -> InvalidationResponse {
      table.withLockIfAvailable { table in
        for page in range.pages {
          table.installed.remove(page)
          table.changes[page] += 1
        }
        return .done
      } ?? .wouldBlock
    }

    /// False if it has to be tried again.
    func install(_ page: Int, _ interval: IntervalSubscription, _ findings: Findings) throws -> Bool {
      let sequence = try interval.readBegin()
      let before = table.withLock { $0.changes[page] }
      if page % 3 == 0 { yieldForAWhile(milliseconds: 0) }
      return table.withLock { table in
        if interval.readRetry(sequence) { return false }
        if table.changes[page] != before { findings.note("page \(page) changed, and nobody noticed") }
        table.installed.insert(page)
        return true
      }
    }
  }

  @Test("N11: by hand, with a lock of its own, beside two threads that change overlapping ranges")
  func byHand() throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, pages: 32, .handlerThread)
    let device = Device(pages: 32)
    let findings = Findings()
    let interval = try IntervalSubscription(clone, pages: 4..<28) { device.invalidate($0) }
    // Somebody behind it who refuses now and then: it gets its end for a start that came to nothing.
    let turn = Shared()
    let fickle = try clone.subscribe(RecordingNotifier { _ in turn.add() % 5 == 0 ? .wouldBlock : .done }, to: 6..<20)
    let isOver = Shared()
    let installs = Shared()
    let changers = (0..<2).map { index in
      TestThread {
        var random = SeededRandom(seed: Seed.of(index))
        for _ in 0..<400 {
          let start = Int.random(in: 0..<28, using: &random)
          let pages = start..<start + Int.random(in: 1...4, using: &random)
          switch Int.random(in: 0..<3, using: &random) {
          case 0 where index == 0:
            try clone.protect(pages)
            try clone.protect(pages, to: .readWrite)
          case 1: try? clone.setWord(start, 0, 1)
          default: do { try clone.discard(pages) } catch let error as PinError where error.code == .accessDenied {}
          }
        }
      }
    }
    let readers = (0..<2).map { index in
      TestThread {
        var random = SeededRandom(seed: Seed.of(10 + index))
        while isOver.value == 0 {
          if try device.install(Int.random(in: 4..<28, using: &random), interval, findings) { installs.add() }
        }
      }
    }
    for thread in changers { try thread.join() }
    #expect(spin { installs.value > 0 })
    isOver.value = 1
    for thread in readers { try thread.join() }
    #expect(findings.all == [])
    // Nothing is under way: it begins at once, and nothing has changed since.
    let last = Shared()
    let reader = TestThread {
      let sequence = try interval.readBegin()
      last.value = interval.readRetry(sequence) ? 2 : 1
    }
    #expect(spin { last.value != 0 })
    #expect(last.value == 1)
    if last.value == 0 { interval.remove() }
    try? reader.join()
    fickle.remove()
    interval.remove()
    #expect(try region.word(31) == 32)
    try space.close()
  }

  @Test("N11: a reader waits for all of several changes that overlap, and no longer")
  func nested() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 16)
    let interval = try IntervalSubscription(region) { _ in .done }
    let starts = Shared()
    let mayEnd = [Shared(), Shared()]
    // Behind the interval: by now that knows of the change.
    let gate = RecordingNotifier { range in
      starts.add()
      let index = range.pages.lowerBound == 0 ? 0 : 1
      if !spin(until: { mayEnd[index].value == 1 }) { Issue.record("nobody lets the change go on") }
      return .done
    }
    let subscription = try region.subscribe(gate)
    let before = try interval.readBegin()
    let changers = [0..<8, 4..<12].map { pages in TestThread { try region.discard(pages) } }
    #expect(spin { starts.value == 2 })
    #expect(interval.readRetry(before))
    let sequence = Mutex<UInt64?>(nil)
    let reader = TestThread {
      let found = try interval.readBegin()
      sequence.withLock { $0 = found }
    }
    yieldForAWhile()
    #expect(!reader.hasEnded)
    mayEnd[0].value = 1
    try changers[0].join()
    yieldForAWhile()
    #expect(!reader.hasEnded, "a change is still under way")
    mayEnd[1].value = 1
    try changers[1].join()
    try reader.join()
    let found = try #require(sequence.withLock { $0 })
    #expect(found != before && !interval.readRetry(found))
    try region.discard(15..<16)
    #expect(interval.readRetry(found))
    subscription.remove()
    let codes = [
      errorCode {
        interval.remove()
        _ = try interval.readBegin()
      },
      errorCode {
        let other = try IntervalSubscription(region) { _ in .done }
        try region.unmap()
        _ = try other.readBegin()
      },
    ]
    #expect(codes == [.stopped, .unmapped])
    try space.close()
  }
}
