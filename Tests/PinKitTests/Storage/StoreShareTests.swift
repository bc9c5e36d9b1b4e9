import CTestSupport
import Glibc
import Logging
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// K3: calls of one store that do not return keep no other store from its threads, and what has to wait is named.
@Suite("K3: the share of a store in the threads") struct StoreShareTests {
  private static func store(pages: Int, _ gate: StoreGate) -> UnrulyStore {
    let store = UnrulyStore(pages: pages)
    store.set {
      $0.isQuick = false
      $0.reading = { _ throws(PinError) in gate.wait() }
    }
    return store
  }

  private static func space(
    _ log: LogCapture, patience: Double, policy: AddressSpace.FailurePolicy = .terminate
  ) throws -> AddressSpace {
    ct_deadline(60)
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = policy
    configuration.patience = patience
    configuration.logger = log.logger
    return try AddressSpace(configuration: configuration)
  }

  /// Reads the pages of a region from their store, each on a thread of its own.
  private static func readAll(_ region: Region, _ pages: Range<Int>) -> [HostThread] {
    let start = UInt64(region.addresses.start)
    return pages.map { page in
      HostThread { check(ct_load(start + UInt64(page) * 4096), is: UInt8(page + 1), "page \(page)") }
    }
  }

  /// Until the store has been asked for so many pages, or will be.
  private static func awaitRequests(_ count: Int, of region: Region) throws {
    guard let pages = region.attachments.find(FilePages.self) else { throw PinError.broken }
    while pages.outstanding.load(ordering: .sequentiallyConsistent) < count { Kernel.pause(nanoseconds: 1_000_000) }
  }

  private static func delays(_ log: LogCapture) -> [String] {
    log.texts(.critical).filter { $0.contains("for a thread") }
  }

  @Test("K3: 80 calls of one store that do not return leave a quarter of the threads to others, and a quarter of that again")
  func leavesOthers() async {
    await #expect(processExitsWith: .success) {
      let space = try Self.space(LogCapture(), patience: 1000)
      let (first, second) = (try StoreGate(), try StoreGate())
      let region = try space.map(.file(Self.store(pages: 80, first), fillAround: .exact), pages: 80)
      var threads = Self.readAll(region, 0..<80)
      try Self.awaitRequests(80, of: region)
      while first.waiting < 48 { Kernel.pause(nanoseconds: 1_000_000) }
      let slow = try space.map(.file(Self.store(pages: 20, second), fillAround: .exact), pages: 20)
      threads += Self.readAll(slow, 0..<20)
      try Self.awaitRequests(20, of: slow)
      while second.waiting < 12 { Kernel.pause(nanoseconds: 1_000_000) }
      let other = UnrulyStore(pages: 16)
      other.set { $0.isQuick = false }
      let spared = try space.map(.file(other, fillAround: .exact), pages: 16)
      for page in 0..<16 { check(spared.peek(page), is: UInt8(page + 1)) }
      spared.poke(77, 4)
      try spared.flush()
      check(other.durableByte(4), is: 77)
      check(first.mostWaiting, is: 48)
      check(second.mostWaiting, is: 12)
      try first.open()
      try second.open()
      for thread in threads { thread.join() }
      try space.close()
    }
  }

  @Test("K3: 65 stores that do not return: each had a thread, and so has the next")
  func manyStores() async {
    await #expect(processExitsWith: .success) {
      let space = try Self.space(LogCapture(), patience: 1000)
      let gate = try StoreGate()
      let regions = try (0..<65).map { _ in try space.map(.file(Self.store(pages: 2, gate), fillAround: .exact), pages: 2) }
      var threads = regions.flatMap { Self.readAll($0, 0..<1) }
      while gate.waiting < 65 { Kernel.pause(nanoseconds: 1_000_000) }
      // None of them has a second one.
      threads += regions.flatMap { Self.readAll($0, 1..<2) }
      for region in regions { try Self.awaitRequests(2, of: region) }
      let other = UnrulyStore(pages: 16)
      other.set { $0.isQuick = false }
      let spared = try space.map(.file(other, fillAround: .exact), pages: 16)
      for page in 0..<16 { check(spared.peek(page), is: UInt8(page + 1)) }
      check(gate.mostWaiting, is: 65)
      try gate.open()
      for thread in threads { thread.join() }
      try space.close()
    }
  }

  @Test("K3: regions over one store have one share together")
  func sharedStore() async {
    await #expect(processExitsWith: .success) {
      let space = try Self.space(LogCapture(), patience: 1000)
      let gate = try StoreGate()
      let store = Self.store(pages: 40, gate)
      let regions = try (0..<2).map { _ in try space.map(.file(store, fillAround: .exact), pages: 40) }
      let threads = regions.flatMap { Self.readAll($0, 0..<40) }
      for region in regions { try Self.awaitRequests(40, of: region) }
      while gate.waiting < 48 { Kernel.pause(nanoseconds: 1_000_000) }
      let other = UnrulyStore(pages: 1)
      other.set { $0.isQuick = false }
      try check(space.map(.file(other, fillAround: .exact), pages: 1).peek(0), is: 1)
      check(gate.mostWaiting, is: 48)
      try gate.open()
      for thread in threads { thread.join() }
      try space.close()
    }
  }

  /// Until the watchdog has looked so many times more.
  private static func awaitLooks(_ count: Int) {
    let turns = Shared()
    TestHooks.set(.watching) { _ in turns.add() }
    while turns.value < count { Kernel.pause(nanoseconds: 1_000_000) }
    TestHooks.set(.watching, nil)
  }

  @Test("K3: what waits for a thread longer than the patience is said, once, by the store's name; and again the next time")
  func said() async {
    await #expect(processExitsWith: .success) {
      let log = LogCapture()
      let space = try Self.space(log, patience: 5)
      for episode in 1...2 {
        let gate = try StoreGate()
        let region = try space.map(.file(Self.store(pages: 80, gate), fillAround: .exact), pages: 80)
        let threads = Self.readAll(region, 0..<80)
        while Self.delays(log).count < episode { Kernel.pause(nanoseconds: 1_000_000) }
        let line = Self.delays(log)[episode - 1]
        check(line.contains("of the store UnrulyStore has waited for 5.0 s for a thread"), line)
        // However many have come by then.
        check(line.contains(" requests by now") && line.contains("of \(region.addresses)"), line)
        check(line.contains(": 48 of its calls have not returned, the first for "), line)
        check(line.contains("calls of other stores: 0. See to what the store waits for"), line)
        // The watchdog looks on.
        Self.awaitLooks(8)
        check(Self.delays(log).count, is: episode)
        try gate.open()
        for thread in threads { thread.join() }
        try region.unmap()
      }
      try space.close()
    }
  }

  @Test(
    "K3: a region whose requests only wait for a thread fares like those whose calls do not return: it fails, and says so")
  func waitingFails() async {
    await #expect(processExitsWith: .success) {
      for signal in [SIGBUS, SIGSEGV] { _ = ct_handle(signal, CInt(ct_siginfo)) }
      let space = try Self.space(LogCapture(), patience: 0.1, policy: .failRegion)
      let gate = try StoreGate()
      let store = Self.store(pages: 80, gate)
      let regions = try (0..<2).map { _ in try space.map(.file(store, fillAround: .exact), pages: 48) }
      let starts = regions.map { UInt64($0.addresses.start) }
      let threads = (0..<48).map { page in
        HostThread { check(ct_try_load(starts[0] + UInt64(page) * 4096) < 0, "page \(page) came from nowhere") }
      }
      try Self.awaitRequests(48, of: regions[0])
      while gate.waiting < 48 { Kernel.pause(nanoseconds: 1_000_000) }
      check(ct_try_load(starts[1]) < 0, "a page came from nowhere")
      check(gate.mostWaiting, is: 48)
      try check(regions[1].protection().failure?.code, is: .timedOut)
      check(errorCode { try regions[1].unmap() }, is: .timedOut)
      for thread in threads { thread.join() }
      try gate.open()
      for region in regions { while errorCode({ try region.unmap() }) == .timedOut { Kernel.pause(nanoseconds: 1_000_000) } }
      try space.close()
    }
  }

  @Test(
    "K3: where the system has no thread left, that is what is said of the store that waits; with room it goes on")
  func noThreadLeft() async {
    await #expect(processExitsWith: .success) {
      let log = LogCapture()
      let space = try Self.space(log, patience: 1)
      let gate = try StoreGate()
      let region = try space.map(.file(Self.store(pages: 1, gate), fillAround: .exact), pages: 1)
      let other = UnrulyStore(pages: 1)
      other.set { $0.isQuick = false }
      let waiting = try space.map(.file(other, fillAround: .exact), pages: 1)
      let mayGo = Shared()
      let addresses = [region, waiting].map { UInt64($0.addresses.start) }
      let threads = (0..<2).map { index in
        HostThread {
          while mayGo.value <= index { Kernel.pause(nanoseconds: 1_000_000) }
          check(ct_load(addresses[index]), is: 1)
        }
      }
      check(ct_allow_threads(0), is: 0)
      mayGo.value = 1
      while gate.waiting < 1 { Kernel.pause(nanoseconds: 1_000_000) }
      mayGo.value = 2
      while Self.delays(log).isEmpty { Kernel.pause(nanoseconds: 1_000_000) }
      check(ct_allow_threads(1), is: 0)
      let line = Self.delays(log)[0]
      check(line.contains("of \(waiting.addresses)") && line.contains("the system has no thread for it (ulimit -u"), line)
      check(line.contains("calls of other stores: 1"), line)
      threads[1].join()
      check(gate.waiting, is: 1)
      try gate.open()
      threads[0].join()
      try space.close()
    }
  }

  @Test(
    "K3, K5: a process that was stopped while something waited for a thread has not waited for so long",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer has no child of fork()"))
  func stopped() async {
    await #expect(processExitsWith: .success) {
      let log = LogCapture()
      let space = try Self.space(log, patience: 10)
      let gate = try StoreGate()
      let region = try space.map(.file(Self.store(pages: 80, gate), fillAround: .exact), pages: 80)
      let threads = Self.readAll(region, 0..<80)
      try Self.awaitRequests(80, of: region)
      Self.awaitLooks(2)
      check(ct_wait(ct_stop_again_and_again(2, 10_500, 20)), is: 0)
      Self.awaitLooks(2)
      try gate.open()
      for thread in threads { thread.join() }
      check(log.texts(.critical), is: [])
      try space.close()
    }
  }
}
