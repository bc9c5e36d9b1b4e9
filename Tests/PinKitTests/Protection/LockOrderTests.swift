import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// What is reported, and what is not.
@Suite("Lock order") struct LockOrderTests {
  @Test("N8: waiting for a lock of a lower rank, or of the same, is reported with both places")
  func againstOrder() async {
    await #expect(processExitsWith: .success) { try Self.againstOrder() }
  }

  private static func againstOrder() throws {
    let reports = LockReports()
    for held in LockRank.allCases {
      for wanted in LockRank.allCases {
        LockRecord.forgetReported()
        let isAllowed = wanted > held
        if isAllowed {
          LockOrder.holding(held) { LockOrder.want(wanted) }
          check(reports.all.isEmpty, "\(wanted) under \(held): \(reports.all)")
        } else {
          let kind = held.isAtomic && !wanted.isAtomic ? LockOrder.Report.Kind.blockingInAtomicContext : .againstOrder
          reports.expect(kind, held: 1, wanted: 2) {
            LockOrder.holding(held) {
              LockOrder.want(wanted)
            }
          }
          check(reports.all.last?.held.rank == held && reports.all.last?.wanted.rank == wanted, "\(held), \(wanted)")
          reports.clear()
        }
      }
    }
    check(LockRecord.count, is: 0)
  }

  @Test("N8: of the pages of a table several are claimed in ascending order, in any order with the wrprotect lock alone")
  func pages() async {
    await #expect(processExitsWith: .success) { try Self.pages() }
  }

  private static func pages() throws {
    let reports = LockReports()
    let space = try AddressSpace.forTests()
    let region = try space.map(pages: 16)
    let table = region.table
    _ = table.claim(3)
    _ = table.claim(7)
    // A try may go anywhere.
    check(!table.tryClaim(5).contains(.claimed), "a try")
    check(reports.all.isEmpty, "\(reports.all)")
    reports.expect(.againstOrder, held: -5, wanted: 0) { _ = table.claim(6) }
    for page in [3, 5, 6, 7] { table.releaseClaim(page) }
    LockRecord.forgetReported()
    reports.clear()
    LockOrder.holding(.wrprotect, isExclusive: true) {
      for page in [9, 3] { _ = table.claim(page) }
      for page in [9, 3] { table.releaseClaim(page) }
    }
    check(reports.all.isEmpty, "\(reports.all)")
    check(LockRecord.count, is: 0)
    try space.close()
  }

  @Test(
    "N8: a fault under a frame's page lock is reported from inside its signal handler",
    arguments: Mechanisms.inSignalHandlers)
  func faultUnderPageLock(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      try Self.faultUnderPageLock(by: mechanism)
    }
  }

  private static func faultUnderPageLock(by mechanism: WriteTracking.Mechanism) throws {
    let reports = LockReports()
    let tracked = try Tracked(mechanism, backing: .pool)
    let reference = try tracked.region.lookUp(2)
    let line = #line + 1
    try reference.withPageLock {
      ct_store(tracked.address(of: 5), 2)
      check(reports.threads.isEmpty, "delivered with a lock held")
    }
    let report = reports.first()
    check(report?.kind, is: .againstOrder)
    check(report?.held.place.line, is: line)
    check(report?.held.place.file, is: #fileID)
    check(report?.wanted.place.file, is: "PinKit/InPlaceDelivery.swift")
    check(report?.wanted.name, is: "wrprotect lock, shared")
    check(report?.wanted.threadID, is: Int(Kernel.threadID))
    check(LockRecord.count, is: 0)
    try tracked.close()
  }

  @Test("N4: what blocks in atomic context is reported, also a call of PinKit")
  func atomicContext() async {
    await #expect(processExitsWith: .success) { try Self.atomicContext() }
  }

  private static func atomicContext() throws {
    let reports = LockReports()
    let mutex = OrderedMutex(0)
    let spin = OrderedSpinLock(0)
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 4)
    reports.expect(.blockingInAtomicContext, held: 1, wanted: 1) {
      LockOrder.holding(.pageTable) { mutex.withLock { $0 += 1 } }
    }
    reports.expect(.blockingInAtomicContext, held: 1, wanted: 1) {
      spin.withLock { _ in mutex.withLock { $0 += 1 } }
    }
    // A spin lock is what may be taken there.
    LockOrder.inCallback(.invalidateRange) { spin.withLock { $0 += 1 } }
    LockOrder.inCallback(.invalidateRange) { _ = mutex.withLockIfAvailable { $0 += 1 } }
    let reference = try region.lookUp(0)
    try reports.expect(.blockingInAtomicContext, held: 1, wanted: 1) {
      try LockOrder.inCallback(.invalidateRange) { try reference.withPageLock {} }
    }
    for call in [{ try region.protect(0..<1) }, { try region.discard(0..<1) }, { _ = try space.map(pages: 1) }] {
      _ = reports.all
      reports.clear()
      let line = #line + 1
      let code = LockOrder.inCallback(.invalidateRange) { errorCode(call) }
      let report = reports.all.first
      check(report?.kind, is: .blockingInAtomicContext)
      check(report?.held.place.line, is: line)
      check(report?.wanted.place.file.hasPrefix("PinKit/") == true, "\(reports.all)")
      check(report?.wanted.name == "map" || code == .wouldDeadlock, "\(String(describing: code))")
    }
    check(LockRecord.count, is: 0)
    try space.close()
  }

  @Test("N8: a callback that waits for a subscriber's mutex is reported with the place of its owner, one that tries is not")
  func mutexInCallback() async {
    await #expect(processExitsWith: .success) { try Self.mutexInCallback() }
  }

  private static func mutexInCallback() throws {
    let reports = LockReports()
    let queue = OrderedMutex(0, name: "queue")
    let kinds: [LockOrder.CallbackKind] = [.invalidateRangeStart, .invalidateRange, .invalidateRangeEnd, .firstWrite]
    for kind in kinds {
      LockRecord.forgetReported()
      reports.expect(.mutexInCallback, held: 1, wanted: 1) {
        LockOrder.inCallback(kind) { queue.withLock { $0 += 1 } }
      }
      check(reports.all.first?.owner == nil, "nobody had it")
      LockOrder.inCallback(kind) { _ = queue.withLockIfAvailable { $0 += 1 } }
      check(reports.all.count, is: 1)
      reports.clear()
    }
    // The owner, while it waits for a page.
    let space = try AddressSpace.forTests()
    let region = try space.map(pages: 4)
    _ = region.table.claim(1)
    let line = #line + 2
    let owner = TestThread {
      queue.withLock { _ in
        _ = region.table.claim(1)
        region.table.releaseClaim(1)
      }
    }
    check(spin { region.table[1].contains(.contended) }, "the owner waits")
    let waiter = TestThread { LockOrder.inCallback(.invalidateRangeStart) { queue.withLock { $0 += 1 } } }
    let seen = spin { LockRecord.hasViolations }
    check(seen, "reported before it waits")
    region.table.releaseClaim(1)
    try owner.join()
    try waiter.join()
    let report = reports.all.last
    check(report?.owner?.place.line, is: line)
    check(report?.ownerWaitsFor?.name, is: "claim of a page")
    check(report?.ownerWaitsFor?.place.line, is: line + 1)
    check(report?.lines.count, is: 5)
    try space.close()
  }
}
