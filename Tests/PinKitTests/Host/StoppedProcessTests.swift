import CTestSupport
import Glibc
import Logging
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// K5: a process that was stopped has not been waiting.
@Suite("K5: deadlines in a process that is stopped and continued") struct StoppedProcessTests {
  private static let canStop = ct_has_thread_sanitizer() == 0

  @Test("K5: however long the gap between two looks is, it is a sixteenth of the patience")
  func gaps() {
    var deadline = Deadline(16_000_000)
    var looks = 0
    repeat {
      Kernel.pause(nanoseconds: 20_000_000)
      looks += 1
    } while !deadline.isOver()
    #expect(looks == 16)
    var (none, never, short) = (Deadline(0), Deadline(.max), Deadline(1))
    Kernel.pause(nanoseconds: 1_000_000)
    let answers = [none.isOver(), never.isOver(), short.isOver()]
    #expect(answers == [true, false, true])
  }

  /// Has the process stopped twice for longer than ``patience`` takes.
  private static func stop() { check(ct_wait(ct_stop_again_and_again(2, 2300, 20)), is: 0) }
  /// In seconds.
  private static var patience: Double { 2 }

  private static func space(_ log: LogCapture) throws -> AddressSpace {
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = .failRegion
    configuration.patience = patience
    configuration.logger = log.logger
    return try AddressSpace(configuration: configuration)
  }

  final class Reluctant: MMUNotifier {
    let refuses = Atomic<Bool>(false)
    let refusals = Atomic<Int>(0)
    func invalidateRangeStart(_ range: InvalidationRange) throws -> InvalidationResponse {
      guard refuses.load(ordering: .acquiring) else { return .done }
      refusals.add(1, ordering: .sequentiallyConsistent)
      return .wouldBlock
    }
  }

  @Test(
    "K5: a writer waits for a subscriber, and the process is stopped for longer than its patience: it goes on",
    .enabled(if: canStop, "the thread sanitizer has no child of fork()"), arguments: Mechanisms.synchronous)
  func writer(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let log = LogCapture()
      let space = try Self.space(log)
      let region = try space.map(.pool, pages: 16)
      try region.fill(with: 1)
      let clone = try region.clone(mechanism: mechanism)
      let reluctant = Reluctant()
      let subscription = try region.subscribe(reluctant)
      reluctant.refuses.store(true, ordering: .releasing)
      let address = UInt64(region.addresses.start)
      let writer = HostThread { ct_store(address + 3 * 4096, 2) }
      while reluctant.refusals.load(ordering: .acquiring) < 3 { Kernel.pause(nanoseconds: 100_000) }
      Self.stop()
      reluctant.refuses.store(false, ordering: .releasing)
      writer.join()
      check(ct_load(address + 3 * 4096), is: 2)
      try check(clone.load(fromByteOffset: 3 * 4096, as: UInt8.self), is: 1)
      try check(region.protection().failure == nil, "the region has failed")
      check(log.texts(.critical), is: [])
      subscription.remove()
      try space.close()
    }
  }

  @Test(
    "K5: a writer is parked while the kernel keeps asking to retry, and the process is stopped: it goes on",
    .enabled(if: canStop, "the thread sanitizer has no child of fork()"),
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func parked(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let log = LogCapture()
      let space = try Self.space(log)
      let region = try space.map(.anonymous(hugePages: .never), pages: 16)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism)
      _ = try tracker.collect()
      Injection.arm(.unprotect, .resourceTemporarilyUnavailable, times: .max >> 33)
      let address = UInt64(region.addresses.start)
      let writer = HostThread { ct_store(address + 3 * 4096, 2) }
      while Injection.count < 3 { Kernel.pause(nanoseconds: 100_000) }
      Self.stop()
      Injection.disarm()
      writer.join()
      try check(tracker.collect().runs, is: [3..<4])
      check(log.texts(.critical), is: [])
      try space.close()
    }
  }

  @Test(
    "K5: a collector waits while the kernel keeps asking to retry, and the process is stopped: it goes on",
    .enabled(if: canStop, "the thread sanitizer has no child of fork()"),
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func collector(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let space = try Self.space(LogCapture())
      let region = try space.map(.anonymous(hugePages: .never), pages: 16)
      let tracker = try region.trackWrites(mechanism)
      try region.store(UInt8(9), toByteOffset: 7 * 4096)
      Injection.arm(.writeProtect, .resourceTemporarilyUnavailable, times: .max >> 33)
      let isStopped = Atomic<Bool>(false)
      let other = HostThread {
        while Injection.count < 3 { Kernel.pause(nanoseconds: 100_000) }
        Self.stop()
        Injection.disarm()
        isStopped.store(true, ordering: .releasing)
      }
      try check(tracker.collect().runs, is: [7..<8])
      check(isStopped.load(ordering: .acquiring), "the collection did not wait")
      other.join()
      try space.close()
    }
  }

  @Test(
    "K5: a reader is in a callback while the process is stopped: no alarm",
    .enabled(if: canStop, "the thread sanitizer has no child of fork()"))
  func alarm() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let log = LogCapture()
      let isInside = Atomic<Bool>(false)
      let mayGo = Atomic<Bool>(false)
      let tracked = try Tracked(
        .handlerThread,
        onFirstWrite: { _ in
          isInside.store(true, ordering: .releasing)
          while !mayGo.load(ordering: .acquiring) { Kernel.pause(nanoseconds: 1_000_000) }
        },
        configure: {
          $0.logger = log.logger
          $0.patience = Self.patience
        })
      let writer = HostThread { ct_store(tracked.address(of: 3), 2) }
      while !isInside.load(ordering: .acquiring) { Kernel.pause(nanoseconds: 1_000_000) }
      Self.stop()
      // The watchdog has looked since.
      let looks = Shared()
      TestHooks.set(.watching) { _ in looks.add() }
      while looks.value < 2 { Kernel.pause(nanoseconds: 1_000_000) }
      mayGo.store(true, ordering: .releasing)
      writer.join()
      check(log.texts(.critical), is: [])
      TestHooks.set(.watching, nil)
      try tracked.close()
    }
  }

  @Test("K3: a reader that is in a callback for longer than the patience is reported, once")
  func realAlarm() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let log = LogCapture()
      let tracked = try Tracked(
        .handlerThread, onFirstWrite: { _ in while log.texts(.critical).isEmpty { Kernel.pause(nanoseconds: 1_000_000) } },
        configure: {
          $0.logger = log.logger
          $0.patience = 0.05
        })
      ct_store(tracked.address(of: 3), 2)
      check(log.texts(.critical).count, is: 1)
      check(log.texts(.critical).first?.contains("worked on one batch") == true, "\(log.texts(.critical))")
      try tracked.close()
    }
  }

  @Test(
    "K5: time in which a snapshot holds a writer is not patience",
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func held(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let log = LogCapture()
      var configuration = AddressSpace.Configuration()
      configuration.failurePolicy = .failRegion
      configuration.patience = 0.2
      configuration.logger = log.logger
      let space = try AddressSpace(configuration: configuration)
      let region = try space.map(.anonymous(hugePages: .never), pages: 16)
      try region.fill(with: 1)
      let snapshot = try region.snapshot(SnapshotOptions(mechanism: mechanism, captureLimit: 0))
      let address = UInt64(region.addresses.start)
      let writer = HostThread { ct_store(address + 3 * 4096, 2) }
      while space.statistics.heldWrites == 0 { Kernel.pause(nanoseconds: 1_000_000) }
      // Longer than the patience, in time in which the writer tries again.
      Kernel.pause(nanoseconds: 600_000_000)
      Injection.arm(.unprotect, .resourceTemporarilyUnavailable, times: 3)
      snapshot.close()
      writer.join()
      check(ct_load(address + 3 * 4096), is: 2)
      try check(region.protection().failure == nil, "the region has failed")
      check(log.texts(.critical), is: [])
      Injection.disarm()
      try space.close()
    }
  }

  @Test("K3: the watchdog looks at the readers while the space closes: none of them is taken for dead")
  func closing() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let log = LogCapture()
      let tracked = try Tracked(.handlerThread, configure: { $0.logger = log.logger })
      let handler = try tracked.space.faultHandler()
      let isWatching = Atomic<Bool>(false)
      TestHooks.set(.watching) { _ in
        isWatching.store(true, ordering: .releasing)
        while !handler.isStopping.load(ordering: .acquiring) { Kernel.pause(nanoseconds: 100_000) }
        while unsafe ct_threads_named("pinkit-faults") > 0 { Kernel.pause(nanoseconds: 100_000) }
      }
      while !isWatching.load(ordering: .acquiring) { Kernel.pause(nanoseconds: 100_000) }
      try tracked.close()
      TestHooks.set(.watching, nil)
      check(log.texts(.critical), is: [])
    }
  }
}
