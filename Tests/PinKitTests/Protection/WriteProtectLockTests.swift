import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// The lock between fault handling and whatever changes protection.
@Suite("WriteProtectLock") struct WriteProtectLockTests {
  private final class Guarded: Sendable {
    let futex = FutexLock()
    let counters = FaultCounters()
    let lock: WriteProtectLock
    let readers = Atomic<Int>(0)
    let writers = Atomic<Int>(0)
    let violations = Atomic<Int>(0)
    let isOver = Atomic<Bool>(false)
    let reads = Atomic<Int>(0)
    let writes = Atomic<Int>(0)
    let rearmed = Atomic<Int>(0)

    init() { lock = WriteProtectLock(counters: counters) }
    deinit {
      futex.deallocate()
      counters.deallocate()
    }

    func read() {
      let hold = lock.lockShared()
      inside()
      _ = consume hold
    }

    func inside() {
      readers.add(1, ordering: .sequentiallyConsistent)
      if writers.load(ordering: .sequentiallyConsistent) != 0 { violations.add(1, ordering: .relaxed) }
      Kernel.relax()
      if writers.load(ordering: .sequentiallyConsistent) != 0 { violations.add(1, ordering: .relaxed) }
      readers.subtract(1, ordering: .sequentiallyConsistent)
      reads.add(1, ordering: .relaxed)
    }

    func write() {
      lock.withExclusive(rearm: { self.rearmed.add(1, ordering: .relaxed) }) {
        if self.writers.add(1, ordering: .sequentiallyConsistent).oldValue != 0 {
          self.violations.add(1, ordering: .relaxed)
        }
        if self.readers.load(ordering: .sequentiallyConsistent) != 0 { self.violations.add(1, ordering: .relaxed) }
        Kernel.relax()
        if self.readers.load(ordering: .sequentiallyConsistent) != 0 { self.violations.add(1, ordering: .relaxed) }
        self.writers.subtract(1, ordering: .sequentiallyConsistent)
        self.writes.add(1, ordering: .relaxed)
      }
    }

    var goesOn: Bool { !isOver.load(ordering: .acquiring) }
  }

  @Test("W1: readers share, writers are alone")
  func exclusion() {
    let guarded = Guarded()
    let threads =
      (0..<4).map { _ in HostThread { for _ in 0..<20_000 { guarded.read() } } }
      + (0..<2).map { _ in HostThread { for _ in 0..<10_000 { guarded.write() } } }
    for thread in threads { thread.join() }
    #expect(guarded.violations.load(ordering: .relaxed) == 0)
    #expect(guarded.reads.load(ordering: .relaxed) == 80_000)
    #expect(guarded.writes.load(ordering: .relaxed) == 20_000)
  }

  @Test("A writer gets in between readers that never leave a gap", .timeLimit(.minutes(60)))
  func writerIsNotStarved() {
    let guarded = Guarded()
    // Each reader lets go only when the next one has its hold: without fairness there is never a moment without readers.
    let turn = Atomic<Int>(0)
    let readers = (0..<2).map { index in
      HostThread {
        while guarded.goesOn {
          let hold = guarded.lock.lockShared()
          turn.store(index, ordering: .releasing)
          for _ in 0..<2000 where turn.load(ordering: .acquiring) == index && guarded.goesOn { Kernel.relax() }
          _ = consume hold
        }
      }
    }
    for _ in 0..<200 { guarded.write() }
    guarded.isOver.store(true, ordering: .releasing)
    for reader in readers { reader.join() }
    #expect(guarded.writes.load(ordering: .relaxed) == 200)
  }

  @Test("Readers get in between writers that follow each other without a gap", .timeLimit(.minutes(60)))
  func readersAreNotStarved() {
    let guarded = Guarded()
    let writers = (0..<2).map { _ in HostThread { while guarded.goesOn { guarded.write() } } }
    let readers = (0..<2).map { _ in HostThread { for _ in 0..<500 { guarded.read() } } }
    for reader in readers { reader.join() }
    guarded.isOver.store(true, ordering: .releasing)
    for writer in writers { writer.join() }
    #expect(guarded.violations.load(ordering: .relaxed) == 0)
    #expect(guarded.reads.load(ordering: .relaxed) == 1000)
  }

  @Test("A leaving writer lets every reader in that came meanwhile, before the next writer")
  func phases() {
    let guarded = Guarded()
    let order = Mutex<[String]>([])
    var threads: [HostThread] = []
    let isFirstIn = Atomic<Bool>(false)
    let mayLeave = Atomic<Bool>(false)
    threads.append(
      HostThread {
        _ = guarded.futex.lockExclusive()
        isFirstIn.store(true, ordering: .releasing)
        while !mayLeave.load(ordering: .acquiring) { Kernel.relax() }
        order.withLock { $0.append("first writer") }
        guarded.futex.unlockExclusive()
      })
    while !isFirstIn.load(ordering: .acquiring) { Kernel.relax() }
    let arrived = Atomic<Int>(0)
    threads.append(
      HostThread {
        arrived.add(1, ordering: .releasing)
        _ = guarded.futex.lockExclusive()
        order.withLock { $0.append("second writer") }
        guarded.futex.unlockExclusive()
      })
    for _ in 0..<3 {
      threads.append(
        HostThread {
          arrived.add(1, ordering: .releasing)
          if guarded.futex.lockShared() { order.withLock { $0.append("reader") } }
          guarded.futex.unlockShared()
        })
    }
    while arrived.load(ordering: .acquiring) < 4 { Kernel.relax() }
    // The readers are queued once the lock says so: three in the upper half of its state.
    while guarded.futex.queuedReaders < 3 { Kernel.relax() }
    mayLeave.store(true, ordering: .releasing)
    for thread in threads { thread.join() }
    #expect(order.withLock { $0 } == ["first writer", "reader", "reader", "reader", "second writer"])
  }

  @Test("W1: whoever takes the lock again and again gives way to a reader that it turned away") func turns() throws {
    let guarded = Guarded()
    let (turnedAway, isAwaited, isOver, isIn) = (Shared(), Shared(), Shared(), Shared())
    let thread = Kernel.threadID
    TestHooks.set(.givingWay) { _ in if Kernel.threadID == thread { isAwaited.value = 1 } }
    defer { TestHooks.set(.givingWay, nil) }
    let reader = TestThread {
      while turnedAway.value == 0 {
        if let hold = guarded.lock.trySharedOrDefer() { _ = consume hold } else { turnedAway.value = 1 }
      }
      // Not before it is waited for.
      guard spin(until: { isAwaited.value == 1 || isOver.value == 1 }), isOver.value == 0 else { return }
      let hold = guarded.lock.trySharedOrDefer()
      if hold != nil { isIn.value = 1 }
      _ = consume hold
    }
    guarded.lock.withExclusive(rearm: {}) { _ = spin { turnedAway.value == 1 } }
    guarded.lock.giveWay(atMost: 600_000_000_000)
    isOver.value = 1
    try reader.join()
    #expect(isIn.value == 1)
    // Nobody waits for one that is not awaited.
    guarded.lock.giveWay(atMost: 600_000_000_000)
  }

  @Test("K2: a reader that was turned away is told when to come back, whatever the order")
  func deferral() {
    let guarded = Guarded()
    let turnedAway = Atomic<Int>(0)
    let readers = (0..<2).map { _ in
      HostThread {
        while guarded.goesOn {
          let before = guarded.rearmed.load(ordering: .sequentiallyConsistent)
          if let hold = guarded.lock.trySharedOrDefer() {
            guarded.inside()
            _ = consume hold
            continue
          }
          turnedAway.add(1, ordering: .relaxed)
          // The promise: an exclusive operation that ends after this reports again. Otherwise this never returns.
          while guarded.rearmed.load(ordering: .sequentiallyConsistent) == before { Kernel.relax() }
        }
      }
    }
    let other = HostThread { for _ in 0..<20_000 { guarded.write() } }
    for _ in 0..<20_000 { guarded.write() }
    other.join()
    guarded.isOver.store(true, ordering: .releasing)
    for reader in readers { reader.join() }
    #expect(guarded.violations.load(ordering: .relaxed) == 0)
    #expect(guarded.counters[.deferredBatches] == UInt64(turnedAway.load(ordering: .relaxed)))
  }

  @Test("Signals wait while the lock is held exclusively, and only then")
  func signalsWait() async {
    await #expect(processExitsWith: .success) {
      ct_unblock_signals()
      let guarded = Guarded()
      guarded.lock.withExclusive(rearm: {}) {
        for signal in [CInt(10), 12, 14, 27] { check(ct_is_blocked(signal), is: 1) }
        // Those of faults do not: a fault while they are blocked kills without a word.
        for signal in [CInt(11), 7] { check(ct_is_blocked(signal), is: 0) }
      }
      for signal in [CInt(10), 12, 14, 27] { check(ct_is_blocked(signal), is: 0) }
    }
  }
}
