import CTestSupport
import Glibc
import Logging
import Synchronization
import Testing

@testable import PinKit

/// Where reports go, and that the record is right on every path.
@Suite("Lock reports and records") struct LockDeliveryTests {
  @Test("Each pair of places is reported once, from however many threads")
  func once() async {
    await #expect(processExitsWith: .success) { try Self.once() }
  }

  private static func once() throws {
    let reports = LockReports()
    try onThreads(4) { _ in
      for _ in 0..<100 { LockOrder.holding(.page) { LockOrder.want(.wrprotect) } }
    }
    check(reports.all.count, is: 1)
    LockOrder.holding(.page) { LockOrder.want(.wrprotect) }
    check(reports.all.count, is: 2)
  }

  @Test("A report waits until its thread lets go of the outermost mutex")
  func outermost() async {
    await #expect(processExitsWith: .success) { try Self.outermost() }
  }

  private static func outermost() throws {
    let count = Shared()
    LockOrder.setHandler { _ in count.add() }
    let first = OrderedMutex(0)
    let second = OrderedMutex(0)
    first.withLock { _ in
      second.withLock { _ in }
      check(count.value, is: 0)
    }
    check(count.value, is: 1)
  }

  @Test("Without a handler the log gets a line for each place, as critical, with a label of its own")
  func log() async {
    await #expect(processExitsWith: .success) { try Self.log() }
  }

  private static func log() throws {
    let capture = LogCapture()
    let labels = Mutex<[String]>([])
    LoggingSystem.bootstrap { label in
      labels.withLock { $0.append(label) }
      return LogCapture.Handler(capture: capture)
    }
    let line = #line + 1
    LockOrder.holding(.page) { LockOrder.want(.wrprotect) }
    LockOrder.deliver()
    let lines = capture.texts(.critical)
    check(labels.withLock { $0 }, is: ["pinkit.lockcheck"])
    check(lines.count, is: 3)
    check(lines.filter { $0.contains("\(#fileID):\(line): ") }.count, is: 2, "\(lines)")
  }

  @Test("In fatal mode the process aborts after the report")
  func fatal() async {
    await #expect(processExitsWith: .signal(SIGABRT)) { try Self.fatal() }
  }

  private static func fatal() throws {
    LockRecord.setMode(LockOrder.fatal)
    let count = Shared()
    LockOrder.setHandler { _ in count.add() }
    let first = OrderedMutex(0)
    let second = OrderedMutex(0)
    first.withLock { _ in second.withLock { _ in } }
    exit(count.value == 1 ? 0 : 1)
  }

  @Test("Off, nothing is recorded or reported, and calls from callbacks are refused all the same")
  func off() async {
    await #expect(processExitsWith: .success) { try Self.off() }
  }

  private static func off() throws {
    LockRecord.setMode(0)
    let reports = LockReports()
    let space = try AddressSpace.forTests()
    let region = try space.map(pages: 1)
    let first = OrderedMutex(0)
    let second = OrderedMutex(0)
    first.withLock { _ in
      second.withLock { _ in }
      check(LockRecord.count, is: 0)
    }
    check(LockOrder.inCallback(.invalidateRangeStart) { errorCode { try region.protect(0..<1) } }, is: .wouldDeadlock)
    check(!LockOrder.isInCallback, "left")
    check(reports.all.isEmpty, "\(reports.all)")
    try space.close()
  }

  @Test("A call that waits for the callback it is made from is refused and reported")
  func refused() async {
    await #expect(processExitsWith: .success) { try Self.refused() }
  }

  private static func refused() throws {
    let reports = LockReports()
    let space = try AddressSpace.forTests()
    let region = try space.map(pages: 4)
    for kind in [LockOrder.CallbackKind.invalidateRangeStart, .invalidateRangeEnd] {
      LockRecord.forgetReported()
      reports.clear()
      let line = #line + 1
      check(LockOrder.inCallback(kind) { errorCode { try region.protect(0..<1) } }, is: .wouldDeadlock)
      check(reports.all.map(\.kind), is: [.callInCallback])
      check(reports.all.first?.held.place.line, is: line)
      check(reports.all.first?.wanted.name, is: "protect")
      // Bytes may be read and written there.
      try LockOrder.inCallback(kind) { try region.store(UInt8(1), toByteOffset: 0) }
    }
    check(!LockOrder.isInCallback, "left")
    try space.close()
  }

  @Test(
    "A child of fork() holds nothing, and is in no callback",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer has no child of fork()"))
  func fork() async {
    await #expect(processExitsWith: .success) { try Self.fork() }
  }

  private static func fork() throws {
    let mutex = OrderedMutex(0)
    let status = mutex.withLock { _ in
      LockOrder.inCallback(.invalidateRangeStart) {
        LockOrder.want(.wrprotect)
        return Fork.run {
          if LockRecord.count != 0 || LockOrder.isInCallback || LockRecord.hasViolations { return 1 }
          return LockRecord.threadID == UInt32(Kernel.threadID) ? 0 : 2
        }
      }
    }
    check(status, is: 0)
    check(LockRecord.count, is: 0)
  }

  @Test("The record is balanced after faults, collections, pins, clones and snapshots", arguments: Mechanisms.synchronous)
  func balanced(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      try Self.balanced(by: mechanism)
    }
  }

  private static func balanced(by mechanism: WriteTracking.Mechanism) throws {
    let reports = LockReports()
    let tracked = try Tracked(mechanism, backing: .pool)
    let isUneven = Shared()
    TestHooks.set(.readerIdle) { _ in if LockRecord.count != 0 { isUneven.value = 1 } }
    try onThreads(3) { index in
      for round in 0..<20 {
        for page in 0..<64 { ct_store(tracked.address(of: page), UInt8(truncatingIfNeeded: round + index)) }
        if index == 0 { _ = try tracked.tracker.collect() }
        if index == 1 {
          let snapshot = try tracked.region.snapshot()
          try tracked.region.discard(0..<4)
          snapshot.close()
        }
        if index == 2 {
          let clone = try tracked.region.clone()
          _ = try tracked.region.pin(8 + round..<9 + round, .write)
          try clone.unmap()
        }
        if LockRecord.count != 0 { isUneven.value = 1 }
      }
    }
    check(isUneven.value, is: 0)
    check(reports.all.isEmpty, "\(reports.all)")
    try tracked.close()
  }

  @Test(
    "What a signal handler takes and lets go of leaves the interrupted record as it was",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals and has no child of fork()"))
  func signals() async {
    await #expect(processExitsWith: .success) { try Self.signals() }
  }

  private static func signals() throws {
    let reports = LockReports()
    let tracked = try Tracked(.mprotect)
    // A profiler that writes managed memory, and so faults at any point of a push or a pop.
    _ = ct_profile(tracked.address(of: 0), 64, 4096)
    _ = ct_profile_this_thread(100)
    let mutex = OrderedMutex(0)
    let end = Kernel.now() + 1_000_000_000
    while Kernel.now() < end {
      mutex.withLock { _ in check(LockRecord.count, is: 1) }
      if LockRecord.count != 0 { return check(false, "uneven") }
      _ = try tracked.tracker.collect()
    }
    ct_end_profile_of_this_thread()
    check(ct_profile_count() > 0, "no signals")
    check(reports.all.isEmpty, "\(reports.all)")
    try tracked.close()
  }

  @Test("Both locks exclude, give what they guard, and pass errors on")
  func locks() throws {
    let mutex = OrderedMutex(0)
    let spin = OrderedSpinLock(0)
    try onThreads(4) { _ in
      for _ in 0..<5000 {
        mutex.withLock { $0 += 1 }
        spin.withLock { $0 += 1 }
      }
    }
    #expect(mutex.withLock { $0 } == 20_000)
    #expect(spin.withLock { $0 } == 20_000)
    #expect(throws: PinError.self) {
      try mutex.withLock { _ throws(PinError) in throw PinError(.stopped, operation: "") }
    }
    #expect(throws: PinError.self) {
      try spin.withLock { _ throws(PinError) in throw PinError(.stopped, operation: "") }
    }
    #expect(LockRecord.count == 0)
    let isBusy = Shared()
    mutex.withLock { _ in
      spin.withLock { _ in
        let other = TestThread {
          if mutex.withLockIfAvailable({ $0 }) == nil, spin.withLockIfAvailable({ $0 }) == nil { isBusy.value = 1 }
        }
        try? other.join()
      }
    }
    #expect(isBusy.value == 1)
    #expect(mutex.withLockIfAvailable { $0 } == 20_000)
    #expect(spin.withLockIfAvailable { $0 } == 20_000)
  }
}
