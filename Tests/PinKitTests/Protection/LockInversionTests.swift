import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// The lock inversion that vhost had: the notifying path holds a page and calls back, the callback wants the queue mutex, and whoever
/// has the queue mutex is in a fault that waits for the page.
@Suite("Lock inversion") struct LockInversionTests {
  @Test(
    "N8: the inversion is reported, with all places, by somebody who does not take part", arguments: Mechanisms.synchronous)
  func deadlock(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      try Self.deadlock(by: mechanism)
    }
  }

  private static func deadlock(by mechanism: WriteTracking.Mechanism) throws {
    let reports = LockReports()
    let queue = OrderedMutex(0, name: "queue")
    let (isTaken, isCalled, finished) = (Shared(), Shared(), Shared())
    let table = Mutex<PageTable?>(nil)
    let isInSignalHandler = mechanism != .handlerThread
    let inCallback = #line + 8
    let tracked = try Tracked(
      mechanism,
      onFirstWrite: { write in
        isCalled.value = 1
        while isTaken.value == 0 { Kernel.relax() }
        let table = table.withLock { $0 }!
        while isInSignalHandler, !table[write.page].contains(.contended) { Kernel.relax() }
        queue.withLock { $0 += 1 }
      })
    table.withLock { $0 = tracked.region.table }
    // It faults, and its fault calls back.
    let notifier = TestThread {
      ct_store(tracked.address(of: 3), 1)
      finished.add()
    }
    check(spin { isCalled.value == 1 }, "called back")
    let line = #line + 2
    let device = TestThread {
      queue.withLock { _ in
        isTaken.value = 1
        ct_store(tracked.address(of: 3), 2)
      }
      finished.add()
    }
    guard let report = reports.first() else { return check(false, "no report") }
    check(report.kind, is: .mutexInCallback)
    check(report.held.name, is: "first-write callback")
    check(report.held.place.file, is: "PinKit/FirstWriteCallbacks.swift")
    check(report.wanted.name, is: "queue")
    check(report.wanted.place.line, is: inCallback)
    check(report.owner?.place.line, is: line)
    check(report.owner?.threadID != report.wanted.threadID, "two threads")
    // A fault that a reader serves is waited for in the kernel.
    check(report.ownerWaitsFor?.name, is: isInSignalHandler ? "claim of a page" : nil)
    check(
      reports.threads.allSatisfy { $0 != report.wanted.threadID && Int($0) != report.owner?.threadID ?? 0 }, "delivered")
    // It was no false alarm.
    yieldForAWhile(milliseconds: 100)
    check(finished.value, is: 0)
    check(notifier.isAsleep && device.isAsleep, "they wait for each other")
  }

  @Test(
    "N4/N8: the same program that tries, and tries again, runs without a report and does not deadlock",
    arguments: Mechanisms.synchronous)
  func wouldBlock(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      try Self.wouldBlock(by: mechanism)
    }
  }

  private static func wouldBlock(by mechanism: WriteTracking.Mechanism) throws {
    let reports = LockReports(deadline: 120)
    // What the device has cached of the memory; a callback that cannot have the queue leaves a note for its owner.
    let queue = OrderedMutex(0, name: "queue")
    let flushes = OrderedSpinLock(0, name: "flushes")
    let (refused, notified, isOver) = (Shared(), Shared(), Shared())
    let pages = 16
    let tracked = try Tracked(
      mechanism, pages: pages,
      onFirstWrite: { _ in
        if queue.withLockIfAvailable({ $0 += 1 }) == nil { flushes.withLock { $0 += 1 } }
      })
    let protection = tracked.region.attachments.find(RegionProtection.self)!
    // Faults under the queue mutex, all the time.
    let devices = (0..<2).map { index in
      TestThread {
        var turn = index
        while isOver.value == 0 {
          queue.withLock { _ in
            for _ in 0..<4 {
              turn += 1
              ct_store(tracked.address(of: turn % pages), UInt8(truncatingIfNeeded: turn))
            }
          }
          yieldForAWhile(milliseconds: 1)
        }
      }
    }
    // The notifying path: start, change, end, under the wrprotect lock; where start would block, it backs off and tries again.
    var isRetry = false
    while notified.value < 50 {
      let isDone = protection.exclusive { _ in
        // The first time, time for a device to take the queue and to fault.
        if !isRetry { yieldForAWhile(milliseconds: 1) }
        let started = LockOrder.inCallback(.invalidateRangeStart) { queue.withLockIfAvailable { $0 += 1 } != nil }
        guard started else { return false }
        LockOrder.inCallback(.invalidateRange) { flushes.withLock { $0 += 1 } }
        LockOrder.inCallback(.invalidateRangeEnd) { flushes.withLock { $0 += 1 } }
        return true
      }
      isRetry = !isDone
      if isDone { notified.add() } else { refused.add() }
      if isDone { _ = try tracked.tracker.collect() } else { sched_yield() }
    }
    isOver.value = 1
    for device in devices { try device.join() }
    check(refused.value > 0, "nobody was ever refused")
    check(reports.all.isEmpty, "\(reports.all)")
    check(LockRecord.count, is: 0)
    try tracked.close()
  }
}
