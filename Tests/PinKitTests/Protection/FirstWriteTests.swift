import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// What a first-write callback sees and may do.
@Suite("First-write callbacks") struct FirstWriteTests {
  @Test("A callback sees the old bytes, once for each page and interval", arguments: Mechanisms.synchronous)
  func oldBytes(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(120)
      let pages = 64
      // What each page holds while nobody writes, set between the intervals.
      let before = Atomic<UInt64>(1)
      let seen = Counts(pages)
      let wrong = Atomic<Int>(0)
      let base = Atomic<UInt64>(0)
      let tracked = try Tracked(
        mechanism, pages: pages,
        onFirstWrite: { write in
          let old = ct_load(base.load(ordering: .acquiring) + UInt64(write.page) * 4096)
          if UInt64(old) != before.load(ordering: .acquiring) { wrong.add(1, ordering: .relaxed) }
          if write.opened != write.page..<write.page + 1 { wrong.add(1, ordering: .relaxed) }
          seen.add(write.page)
        })
      base.store(tracked.address(of: 0), ordering: .releasing)
      for round in 1...40 {
        before.store(UInt64(round), ordering: .releasing)
        // All writers write the same byte to every page.
        let writers = (0..<3).map { index in
          HostThread {
            for turn in 0..<pages { ct_store(tracked.address(of: (turn + index * 20) % pages), UInt8(round + 1)) }
          }
        }
        for writer in writers { writer.join() }
        try check(tracked.tracker.collect().runs, is: [0..<pages])
        check(seen.take(), is: [Int](repeating: 1, count: pages))
      }
      check(wrong.load(ordering: .relaxed), is: 0)
      try tracked.close()
    }
  }

  /// One counter for each page, without locks or memory that a signal handler could need.
  private final class Counts: Sendable {
    private let counters: [Counter]
    private final class Counter: Sendable { let value = Atomic<Int>(0) }
    init(_ count: Int) { counters = (0..<count).map { _ in Counter() } }
    func add(_ index: Int) { counters[index].value.add(1, ordering: .relaxed) }
    func take() -> [Int] { counters.map { $0.value.exchange(0, ordering: .relaxed) } }
  }

  @Test("Calls that would wait for the callback itself throw .wouldDeadlock in it", arguments: Mechanisms.synchronous)
  func deadlocks(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let held = Mutex<Tracked?>(nil)
      let refused = Atomic<Int>(0)
      let tracked = try Tracked(
        mechanism,
        onFirstWrite: { _ in
          guard let tracked = held.withLock({ $0 }) else { return }
          let (region, tracker) = (tracked.region, tracked.tracker)
          let calls: [() throws -> Void] = [
            { _ = try tracker.collect() }, { try tracker.stop() }, { try tracker.pause() }, { try tracker.resume() },
            { try region.protect(0..<1) }, { try region.discard(0..<1) }, { try region.unmap() },
            { _ = try region.trackWrites(mechanism) }, { try tracked.space.close() },
          ]
          for call in calls {
            do { try call() } catch let error as PinError where error.code == .wouldDeadlock {
              refused.add(1, ordering: .relaxed)
            } catch {}
          }
        })
      held.withLock { $0 = tracked }
      ct_store(tracked.address(of: 9), 3)
      check(refused.load(ordering: .relaxed), is: 9)
      check(ct_load(tracked.address(of: 9)), is: 3)
      try check(tracked.tracker.collect().runs, is: [9..<10])
      held.withLock { $0 = nil }
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test(
    "A thread that loses every race for a page is not taken for one with bad memory", arguments: Mechanisms.inSignalHandlers)
  func loser(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try Tracked(mechanism)
      let region = tracked.region
      let isClaimed = Atomic<Bool>(false)
      TestHooks.set(.deciding) { page in
        // The winner, with the claim, until the loser waits for it; the loser gets here with the page open.
        guard !region.table[page].contains(.open) else { return }
        isClaimed.store(true, ordering: .releasing)
        while !region.table[page].contains(.contended) { Kernel.relax() }
      }
      let rounds = 400
      let turn = Atomic<Int>(0)
      let loser = HostThread {
        for round in 0..<rounds {
          while !isClaimed.load(ordering: .acquiring) { Kernel.relax() }
          ct_store(tracked.address(of: 5) + 64, UInt8(truncatingIfNeeded: round))
          isClaimed.store(false, ordering: .releasing)
          turn.store(round + 1, ordering: .releasing)
        }
      }
      for round in 0..<rounds {
        ct_store(tracked.address(of: 5), UInt8(truncatingIfNeeded: round))
        while turn.load(ordering: .acquiring) == round { Kernel.relax() }
        try check(tracked.tracker.collect().runs, is: [5..<6])
      }
      loser.join()
      TestHooks.set(.deciding, nil)
      check(tracked.space.statistics.unexplained, is: 0)
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("Memory that is really gone reaches the host's handler, also while somebody collects")
  func badMemory() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let file = ct_truncated_page()
      let space = try AddressSpace()
      _ = ct_extend_truncated_page()
      let region = try space.adopt(AddressRange(start: UInt(file), count: 4096))
      let tracker = try region.trackWrites(.mprotect)
      _ = ct_handle(SIGBUS, 1)
      ct_store(file, 1)
      try check(tracker.collect().runs, is: [0..<1])
      _ = ct_cut_truncated_page()
      let isOver = Atomic<Bool>(false)
      let collector = HostThread { while !isOver.load(ordering: .acquiring) { _ = try? tracker.collect() } }
      for _ in 0..<20 { check(ct_try_store(file, 1), is: SIGBUS) }
      isOver.store(true, ordering: .releasing)
      collector.join()
      try space.close()
    }
  }
}
