import CTestSupport
import CUffd
import Glibc
import Logging
import Synchronization
import Testing

@testable import PinKit

/// K3: whatever ends the service of faults is noticed, said, and answered by the policy.
@Suite("K3: the death of a handler") struct HandlerDeathTests {
  enum Moment: String, Sendable, Codable, CaseIterable {
    case idle, deciding, unprotected, callback
  }

  /// Makes the reader that serves the next fault, or all readers that wait, end.
  private static func endReaders(at moment: Moment) {
    switch moment {
    case .idle: TestHooks.set(.readerIdle) { _ in KernelThread.exitCurrent() }
    case .deciding: TestHooks.set(.deciding) { _ in KernelThread.exitCurrent() }
    case .unprotected: TestHooks.set(.unprotected) { _ in KernelThread.exitCurrent() }
    case .callback: return
    }
  }

  private static let dyingCallback: @Sendable (FirstWrite) -> Void = { _ in KernelThread.exitCurrent() }

  @Test("With the default policy the process aborts and says why", arguments: Moment.allCases)
  func terminates(_ moment: Moment) async {
    let result = await #expect(processExitsWith: .signal(SIGABRT), observing: [\.standardErrorContent]) {
      [moment = moment as Moment] in
      ct_deadline(60)
      let tracked = try Tracked(
        .handlerThread, onFirstWrite: moment == .callback ? Self.dyingCallback : nil,
        configure: { $0.readerCount = 1 })
      // The reader waits already: it reaches the hook when the first fault has woken it, and comes back.
      Self.endReaders(at: moment)
      for page in 0..<64 { ct_store(tracked.address(of: page), 2) }
      while true { Kernel.pause(nanoseconds: 1_000_000) }
    }
    let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
    #expect(text.contains("PinKit: serve faults (readerDied): fault handler lost"))
    #expect(text.contains("A thread that serves faults ended."))
  }

  @Test("A store that ends the thread which asks it takes no page along for good") func endedByStore() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(280)
      let space = try AddressSpace.forTests()
      let store = UnrulyStore(pages: 64)
      store.set {
        $0.isShortNow = { _ in
          KernelThread.exitCurrent()
          return true
        }
      }
      let region = try space.map(.file(store, fillAround: .block(16)), pages: 64)
      let protection = region.attachments.find(RegionProtection.self)!
      let reader = TestThread { checkSystemCallFails(at: UInt64(region.addresses.start) + 20 * 4096) }
      check(spin(forAtMost: 200) { protection.failure != nil }, "nobody notices")
      try reader.join()
      let claimed = (0..<64).filter { region.table[$0].contains(.claimed) }
      check(claimed, is: [])
      try region.unmap()
      try space.close()
    }
  }

  @Test(
    "With .failRegion waiting writers go on, collections throw, and everything can be closed", arguments: Moment.allCases)
  func failsRegion(_ moment: Moment) async {
    await #expect(processExitsWith: .success) { [moment = moment as Moment] in
      ct_deadline(60)
      let log = LogCapture()
      let tracked = try Tracked(
        .handlerThread, onFirstWrite: moment == .callback ? Self.dyingCallback : { _ in },
        configure: {
          $0.readerCount = 1
          $0.failurePolicy = .failRegion
          $0.logger = log.logger
        })
      Self.endReaders(at: moment)
      let writers = (0..<3).map { index in
        HostThread { for page in 0..<64 { ct_store(tracked.address(of: page), UInt8(index)) } }
      }
      for writer in writers { writer.join() }
      let error = Self.firstError { _ = try tracked.tracker.collect() }
      check(error?.code, is: .handlerLost)
      check(error?.advice.contains("A thread that serves faults ended") == true, "\(String(describing: error))")
      while log.texts(.critical).isEmpty { Kernel.relax() }
      check(log.texts(.critical).contains { $0.contains("serve faults (readerDied)") }, "\(log.texts(.critical))")
      check(Self.firstError { _ = try tracked.region.trackWrites(.handlerThread) }?.code, is: .handlerLost)
      check(Self.firstError { try tracked.region.protect(0..<1) }?.code, is: .handlerLost)
      TestHooks.set(.readerIdle, nil)
      TestHooks.set(.deciding, nil)
      TestHooks.set(.unprotected, nil)
      try tracked.close()
      try Tracked(.handlerThread).expectExact()
    }
  }

  /// Calls `body` until it throws: a death is noticed a moment after it happened.
  private static func firstError(_ body: () throws -> Void) -> PinError? {
    while true {
      do { try body() } catch { return error as? PinError }
    }
  }

  @Test("A collector that waits for the wrprotect lock of a dead reader gets the error, and so does the next")
  func collectorWaits() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let tracked = try Tracked(.handlerThread, configure: { $0.failurePolicy = .failRegion })
      let region = tracked.region
      let isDeciding = Atomic<Bool>(false)
      TestHooks.set(.deciding) { _ in
        isDeciding.store(true, ordering: .releasing)
        let lock = LockProbe(region)
        while !lock.isExclusivelyWanted { Kernel.relax() }
        KernelThread.exitCurrent()
      }
      let writer = HostThread { ct_store(tracked.address(of: 3), 2) }
      while !isDeciding.load(ordering: .acquiring) { Kernel.relax() }
      check(Self.firstError { _ = try tracked.tracker.collect() }?.code, is: .handlerLost)
      writer.join()
      check(ct_load(tracked.address(of: 3)), is: 2)
      check(Self.firstError { _ = try tracked.tracker.collect() }?.code, is: .handlerLost)
      TestHooks.set(.deciding, nil)
      try tracked.close()
    }
  }

  @Test("Other regions are served by the readers that are left")
  func othersGoOn() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let log = LogCapture()
      let tracked = try Tracked(
        .handlerThread,
        configure: {
          $0.readerCount = 2
          $0.failurePolicy = .failRegion
          $0.logger = log.logger
        })
      let other = try tracked.space.map(pages: 64)
      let otherTracker = try other.trackWrites(.handlerThread)
      _ = try otherTracker.collect()
      TestHooks.set(.deciding) { page in if page == 63 { KernelThread.exitCurrent() } }
      ct_store(tracked.address(of: 63), 2)
      check(Self.firstError { _ = try tracked.tracker.collect() }?.code, is: .handlerLost)
      for round in 1..<100 {
        let pages = (0..<20).map { ($0 * 3 + round) % 63 }
        for page in pages { try other.store(UInt8(round), toByteOffset: page * 4096) }
        try check(Array(otherTracker.collect().pages), is: Set(pages).sorted())
      }
      while log.texts(.critical).count < 2 { Kernel.relax() }
      check(log.texts(.critical).contains { $0.contains("ended unexpectedly; others go on") }, "\(log.texts(.critical))")
      TestHooks.set(.deciding, nil)
      try tracked.close()
    }
  }

  @Test("A reader that ends while it waits is no loss as long as there is another")
  func idleReaderEnds() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let log = LogCapture()
      let hasEnded = Atomic<Bool>(false)
      TestHooks.set(.readerIdle) { _ in
        if !hasEnded.exchange(true, ordering: .relaxed) { KernelThread.exitCurrent() }
      }
      let tracked = try Tracked(.handlerThread, configure: { $0.logger = log.logger })
      for _ in 0..<50 { try tracked.expectExact() }
      while log.texts(.critical).isEmpty { Kernel.relax() }
      check(log.texts(.critical).contains { $0.contains("ended unexpectedly; others go on") }, "\(log.texts(.critical))")
      TestHooks.set(.readerIdle, nil)
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("K3: a reader that comes late, to a slot that another region has by now, takes nothing for closed")
  func lateVisit() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      // It has a slot, and no userfaultfd.
      let tracked = try Tracked(.mprotect, configure: { $0.failurePolicy = .failRegion })
      let handler = try tracked.space.faultHandler()
      let slot = try tracked.region.protection().slotIndex!
      let event = cuffd_eventfd()
      for round in 1...20 {
        let visits = Shared()
        TestHooks.set(.readerIdle) { _ in _ = visits.add() }
        try handler.events.add(event, data: UInt64(slot), once: true)
        check(cuffd_eventfd_signal(event), is: 0)
        // Each reader that was woken comes by here again when it is done.
        while visits.value == 0 { Kernel.relax() }
        TestHooks.set(.readerIdle, nil)
        handler.events.remove(event)
        try check(tracked.region.protection().failure, is: nil, "round \(round)")
      }
      Uffd.close(event)
      try tracked.expectExact()
      try tracked.close()
    }
  }

  // MARK: Closed descriptors

  @Test("K3: of several that find the same number closed, one takes the spare and the others go on with it")
  func spareForSeveral() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      for _ in 0..<20 {
        let tracked = try Tracked(.handlerThread, configure: { $0.logger = LogCapture().logger })
        let protection = try tracked.region.protection()
        let closed = unsafe protection.domain.pointee.channels[0].listening
        let ready = Shared()
        let finders = (0..<3).map { _ in
          HostThread {
            _ = ready.add()
            while ready.value < 3 {}
            unsafe check(protection.domain.pointee.channels[0].useSpareDescriptor(insteadOf: closed), "no spare")
          }
        }
        for finder in finders { finder.join() }
        unsafe check(protection.domain.pointee.channels[0].listening != closed, "the closed one is used")
        Uffd.close(closed)
        try tracked.expectExact()
        try tracked.close()
      }
    }
  }

  @Test(
    "One userfaultfd number closed behind PinKit's back: the spare takes over", arguments: Mechanisms.onUserfaultfd,
    [false, true])
  func oneDescriptorClosed(_ mechanism: WriteTracking.Mechanism, isSpare: Bool) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, isSpare = isSpare as Bool] in
      ct_deadline(60)
      let log = LogCapture()
      let tracked = try Tracked(mechanism, configure: { $0.logger = log.logger })
      for round in 1...5 {
        check(ct_close_userfaultfds(1, isSpare ? 1 : 0), is: 1)
        try tracked.expectExact()
        while log.texts(.error).count < round { try tracked.space.faultHandler().alarm.signal() }
        check(log.texts(.error).count, is: round)
        check(log.texts(.error).last!.contains("closed by other code"), log.texts(.error).last!)
        check(ct_userfaultfd_count(), is: 2)
        try tracked.expectExact()
      }
      check(log.texts(.critical).isEmpty, "\(log.texts(.critical))")
      try tracked.close()
      check(ct_userfaultfd_count(), is: 0)
    }
  }

  @Test("Writers and a collector do not notice that numbers are closed again and again", arguments: Mechanisms.onUserfaultfd)
  func descriptorsClosedUnderLoad(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(120)
      let log = LogCapture()
      let shadowed = try ShadowedRegion(mechanism, pages: 96, configure: { $0.logger = log.logger })
      let isOver = Atomic<Bool>(false)
      let writers = (0..<3).map { index in
        HostThread { while !isOver.load(ordering: .acquiring) { shadowed.write(200, as: index) } }
      }
      let collector = HostThread { while !isOver.load(ordering: .acquiring) { shadowed.collect() } }
      for round in 1...20 {
        _ = ct_close_userfaultfds(1, 0)
        while log.texts(.error).count < round { try shadowed.tracked.space.faultHandler().alarm.signal() }
      }
      isOver.store(true, ordering: .releasing)
      for thread in writers + [collector] { thread.join() }
      shadowed.collect()
      shadowed.expectNothingLost()
      try shadowed.tracked.close()
    }
  }

  @Test("A number closed while a reader waits to be called back: its writer goes on")
  func descriptorClosedBeforeRearming() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let tracked = try Tracked(.handlerThread)
      let (space, address) = (tracked.space, tracked.address(of: 3))
      let writer = HostThreads()
      let deferred = space.statistics.deferredBatches
      TestHooks.set(.exclusiveHeld) { _ in
        guard writer.isEmpty else { return }
        writer.start { ct_store(address, 2) }
        while space.statistics.deferredBatches == deferred { Kernel.relax() }
        check(ct_close_userfaultfds(1, 0), is: 1)
      }
      // Nothing is dirty, so nothing but the reader would notice.
      try check(tracked.tracker.collect().isEmpty, "a page that waits was reported")
      TestHooks.set(.exclusiveHeld, nil)
      writer.join()
      try check(tracked.tracker.collect().runs, is: [3..<4])
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("All userfaultfds closed: the process aborts and says why", arguments: Mechanisms.onUserfaultfd)
  func allDescriptorsClosed(_ mechanism: WriteTracking.Mechanism) async {
    let result = await #expect(processExitsWith: .signal(SIGABRT), observing: [\.standardErrorContent]) {
      [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try Tracked(mechanism)
      guard ct_close_userfaultfds(2, 0) == 2 else { exit(3) }
      while true { ct_store(tracked.address(of: 1), 2) }
    }
    let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
    #expect(text.contains("PinKit: serve faults (descriptorClosed): fault handler lost"))
    #expect(text.contains("closed PinKit's userfaultfd"))
  }

  @Test("All userfaultfds closed under .failRegion: collections throw, writers go on", arguments: Mechanisms.onUserfaultfd)
  func allDescriptorsClosedFailing(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try Tracked(mechanism, configure: { $0.failurePolicy = .failRegion })
      check(ct_close_userfaultfds(2, 0), is: 2)
      for page in 0..<64 { ct_store(tracked.address(of: page), 2) }
      check(Self.firstError { _ = try tracked.tracker.collect() }?.code, is: .handlerLost)
      check(Self.firstError { _ = try tracked.region.trackWrites() }?.code, is: .handlerLost)
      // The memory itself is whole, and other regions are tracked.
      for page in 0..<64 { check(ct_load(tracked.address(of: page)), is: 2) }
      let other = try tracked.space.map(pages: 4)
      let tracker = try other.trackWrites(mechanism)
      try other.store(UInt8(1), toByteOffset: 4096)
      try check(tracker.collect().runs, is: [1..<2])
      try tracked.close()
    }
  }

  @Test("A tracker that ends is not taken for one whose descriptors somebody closed", arguments: Mechanisms.onUserfaultfd)
  func watchdogBesideEnds(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(120)
      let log = LogCapture()
      let tracked = try Tracked(mechanism, configure: { $0.logger = log.logger })
      let handler = try tracked.space.faultHandler()
      let isOver = Atomic<Bool>(false)
      let restless = HostThread { while !isOver.load(ordering: .acquiring) { handler.alarm.signal() } }
      let region = try tracked.space.map(pages: 2)
      for _ in 0..<3000 { try region.trackWrites(mechanism).stop() }
      isOver.store(true, ordering: .releasing)
      restless.join()
      check(log.texts(.error) + log.texts(.critical), is: [])
      try tracked.expectExact()
      try tracked.close()
      check(ct_userfaultfd_count(), is: 0)
    }
  }
}

/// Looks at a region's wrprotect lock.
struct LockProbe {
  private let protection: RegionProtection
  init(_ region: Region) { protection = region.attachments.find(RegionProtection.self)! }

  /// Whether an exclusive operation runs or waits.
  var isExclusivelyWanted: Bool {
    guard let hold = unsafe protection.domain.pointee.lock.trySharedOrDefer() else { return true }
    _ = consume hold
    return false
  }
}
