import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// A device that holds its queue mutex while it asks for a translation, and a callback that wants the queue.
@Suite("Notifiers and locks") struct NotifierLockTests {
  @Test("N8: a start that waits for a mutex whose owner waits for the change is reported, with all places")
  func deadlock() async {
    await #expect(processExitsWith: .success) { try NotifierLockTests.deadlocked() }
  }

  private static func deadlocked() throws {
    let reports = LockReports()
    let queue = OrderedMutex(0, name: "queue")
    let (isTaken, finished) = (Shared(), Shared())
    let waiting = Mutex<TestThread?>(nil)
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let mirror = try SecondaryMMU(region)
    let inCallback = #line + 3
    let recorder = RecordingNotifier { _ in
      while isTaken.value == 0 || waiting.withLock({ $0?.isAsleep }) != true { Kernel.relax() }
      queue.withLock { $0 += 1 }
      return .done
    }
    let subscription = try region.subscribe(recorder)
    let notifier = TestThread {
      try region.protect(0..<1)
      finished.add()
    }
    check(spin { !recorder.calls.isEmpty }, "told")
    let line = #line + 2
    let device = TestThread {
      queue.withLock { _ in
        isTaken.value = 1
        try? mirror.translate(0, for: .reading)
      }
      finished.add()
    }
    waiting.withLock { $0 = device }
    guard let report = reports.first() else { return check(false, "no report") }
    check(report.kind, is: .mutexInCallback)
    check(report.held.name, is: "invalidateRangeStart callback")
    check(report.wanted.name, is: "queue")
    check(report.wanted.place.line, is: inCallback)
    check(report.owner?.place.line, is: line)
    check(report.ownerWaitsFor?.name, is: "readBegin")
    // It was no false alarm.
    check(spin { notifier.isAsleep }, "the notifier waits")
    check(finished.value, is: 0)
    withExtendedLifetime((subscription, device)) {}
    ct_exit(0)
  }

  @Test("N4/N8: the same program that tries, and is asked again, runs without a report and ends")
  func wouldBlock() async {
    await #expect(processExitsWith: .success) {
      let reports = LockReports(deadline: 120)
      let queue = OrderedMutex(0, name: "queue")
      let spinning = OrderedSpinLock(0, name: "device")
      let space = try AddressSpace.forTests()
      let (region, clone) = try sharedPair(space, pages: 64, .handlerThread)
      let mirror = try SecondaryMMU(clone)
      let refusals = Shared()
      let recorder = RecordingNotifier(
        { range in
          // What the device causes itself, it causes with the queue in hand.
          if range.isOwned(by: mirror) { return .done }
          if queue.withLockIfAvailable({ $0 += 1 }) != nil { return .done }
          refusals.add()
          return .wouldBlock
        }, middle: { _ in spinning.withLock { $0 += 1 } })
      let subscription = try clone.subscribe(recorder)
      let isOver = Shared()
      let device = TestThread {
        var page = 0
        while isOver.value == 0 {
          try queue.withLock { _ in
            try unsafe mirror.withBytes(of: page % 64, for: .writing) { unsafe $0.storeBytes(of: page, as: Int.self) }
          }
          page += 1
          // A queue that is never left is never had by anybody who only tries.
          for _ in 0..<300 { Kernel.relax() }
        }
      }
      do {
        for round in 0..<400 {
          let pages = round % 60..<round % 60 + 4
          switch round % 4 {
          case 0:
            try clone.protect(pages)
            try clone.protect(pages, to: .readWrite)
          case 1: try clone.discard(pages)
          case 2: try clone.snapshot().close()
          default: _ = try clone.clone()
          }
        }
      } catch { check(false, "\(error)"); ct_exit(9) }
      isOver.value = 1
      // What was denied for a moment is an error of the device's own.
      _ = try? device.join()
      check(reports.all.isEmpty, "\(reports.all)")
      let calls = recorder.take()
      let (starts, ends) = (calls.filter { $0.kind == .start }.count, calls.filter { $0.kind == .end }.count)
      check(starts - refusals.value, is: ends)
      subscription.remove()
      try region.unmap()
      try space.close()
    }
  }

  @Test("N4: a callback that faults, or waits, is refused, and reported with both places")
  func refused() async {
    await #expect(processExitsWith: .success) {
      let reports = LockReports()
      let space = try AddressSpace.forTests()
      let (region, clone) = try sharedPair(space, .handlerThread)
      let mirror = try SecondaryMMU(clone, pages: 5..<6)
      let codes = Mutex<[PinError.Code?]>([])
      let recorder = RecordingNotifier(
        { range in
          let code = errorCode { try mirror.translate(5, for: .writing) }
          codes.withLock { $0.append(code) }
          return .done
        },
        middle: { [weak clone] _ in
          let code = errorCode { try clone?.store(UInt8(1), toByteOffset: 0) }
          codes.withLock { $0.append(code) }
        })
      let subscription = try clone.subscribe(recorder, to: 0..<4)
      try clone.protect(1..<2)
      check(codes.withLock { $0 }, is: [.wouldDeadlock, .wouldDeadlock])
      let kinds = Set(reports.all.map(\.kind))
      check(kinds.contains(.callInCallback), "\(reports.all)")
      subscription.remove()
      try region.unmap()
      try space.close()
    }
  }
}
