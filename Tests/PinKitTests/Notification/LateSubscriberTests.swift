import CTestSupport
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// What happens between the start of a change and its lock: who comes then is told, too, and before anything changes.
@Suite("Between the start of a change and its lock") struct LateSubscriberTests {
  private final class Late: Sendable {
    let mirror = Mutex<SecondaryMMU?>(nil)
    let thread = Mutex<TestThread?>(nil)
    let subscription = Mutex<Subscription?>(nil)
    let isExpected = Shared()

    /// True once, after it was expected.
    func comesNow() -> Bool {
      guard isExpected.value == 1 else { return false }
      isExpected.value = 0
      return true
    }

    /// Runs `body` on a thread of its own, and waits for its end.
    func run(_ body: @escaping @Sendable () throws -> Void) {
      let thread = TestThread(body)
      self.thread.withLock { $0 = thread }
      check(spin { thread.hasEnded }, "a subscriber's start keeps others waiting")
    }
    func join() throws { try thread.withLock { $0 }?.join() }

    /// In whose start a mirror comes and writes page 3.
    func mirroring(_ region: Region) -> RecordingNotifier {
      RecordingNotifier { [self] _ in
        guard comesNow() else { return .done }
        run { [self] in
          let made = try SecondaryMMU(region)
          try made.setWord(3, 0, 9)
          mirror.withLock { $0 = made }
        }
        return .done
      }
    }
  }

  @Test(
    "N2, N9: who subscribes while a tracker resumes, and translates a page, is told before its pages are protected",
    arguments: Mechanisms.all)
  func resuming(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 8)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism)
      let late = Late()
      let first = late.mirroring(region)
      let subscription = try region.subscribe(first)
      try tracker.pause()
      _ = first.take()
      late.isExpected.value = 1
      try tracker.resume()
      try late.join()
      guard let mirror = late.mirror.withLock({ $0 }) else { return check(false, "nobody came") }
      check(!mirror.isTranslated(3, for: .writing), "a translation outlived the protection")
      check(first.take(.start, .end).count, is: 4, "two pairs")
      try mirror.setWord(3, 0, 10)
      try check(tracker.collect().runs, is: [3..<4])
      try check(tracker.collect().isEmpty, "what was written before is reported")
      subscription.remove()
      try tracker.stop()
      try space.close()
    }
  }

  @Test(
    "N2, N9: the same of one that comes while the kernel has a change tried again", arguments: Mechanisms.onUserfaultfd)
  func tryingAgain(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      var configuration = AddressSpace.Configuration()
      configuration.failurePolicy = .failRegion
      configuration.patience = 120
      let space = try AddressSpace(configuration: configuration)
      let region = try space.map(.pool, pages: 8)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism)
      let (first, second) = (RecordingNotifier(), RecordingNotifier())
      let subscription = try region.subscribe(first)
      try tracker.pause()
      _ = first.take()
      Injection.arm(.writeProtect, .resourceTemporarilyUnavailable, times: .max >> 33)
      let late = Late()
      let thread = TestThread {
        defer { Injection.disarm() }
        check(spin { Injection.count > 0 }, "nothing was protected")
        let subscription = try region.subscribe(second)
        late.subscription.withLock { $0 = subscription }
      }
      try tracker.resume()
      try thread.join()
      check(second.take(.start, .end), is: [.start(.writeTracking, 0..<8), .end(.writeTracking, 0..<8)])
      check(first.take(.start, .end).count, is: 4, "two pairs")
      try region.setWord(5, 0, 1)
      try check(tracker.collect().runs, is: [5..<6])
      late.subscription.withLock { $0?.remove() }
      subscription.remove()
      try tracker.stop()
      try space.close()
    }
  }

  @Test(
    "N2, N6: a page that opens between the start and the lock is told of before it is protected",
    arguments: Mechanisms.synchronous)
  func opened(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 16)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism)
      // Of this page alone: the first start is none of its business.
      let mirror = try SecondaryMMU(region, pages: 9..<10)
      let late = Late()
      let notifier = RecordingNotifier { _ in
        if late.comesNow() { late.run { try mirror.setWord(9, 0, 8) } }
        return .done
      }
      let subscription = try region.subscribe(notifier)
      try region.setWord(3, 0, 7)
      late.isExpected.value = 1
      try check(tracker.collect().runs, is: [3..<4, 9..<10])
      try late.join()
      check(!mirror.isTranslated(9, for: .writing), "a translation outlived the protection")
      let told = notifier.take(.start, .end)
      check(told.map(\.kind), is: [.start, .end, .start, .end])
      check(told.first?.pages, is: 3..<4)
      check(told.last?.pages.contains(9) == true, "\(told)")
      try mirror.setWord(9, 0, 9)
      try check(tracker.collect().runs, is: [9..<10])
      subscription.remove()
      try tracker.stop()
      try space.close()
    }
  }

  @Test(
    "N2, N9: who subscribes while a page is about to lose the right to be written is told before it does",
    arguments: Mechanisms.synchronous)
  func denying(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 8)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism)
      let late = Late()
      let notifier = late.mirroring(region)
      let subscription = try region.subscribe(notifier)
      late.isExpected.value = 1
      try region.protect(3..<4)
      try late.join()
      guard let mirror = late.mirror.withLock({ $0 }) else { return check(false, "nobody came") }
      check(!mirror.isTranslated(3, for: .writing), "a translation outlived the right")
      check(errorCode { try mirror.setWord(3, 0, 10) }, is: .accessDenied)
      try check(mirror.word(3), is: 9)
      check(notifier.take(.start, .end).map(\.pages), is: [3..<4, 3..<4, 3..<4, 3..<4])
      subscription.remove()
      try tracker.stop()
      try space.close()
    }
  }
}
