import CTestSupport
import Glibc
import Logging
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// K3: threads that wait for stores are watched like those that read faults.
@Suite("K3: the threads that wait for stores") struct StoreThreadTests {
  enum Moment: String, Sendable, Codable, CaseIterable { case reading, granting, callback }

  private static func space(_ log: LogCapture, patience: Double, policy: AddressSpace.FailurePolicy) throws -> AddressSpace {
    ct_deadline(300)
    for signal in [SIGBUS, SIGSEGV] { _ = ct_handle(signal, CInt(ct_siginfo)) }
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = policy
    configuration.patience = patience
    configuration.logger = log.logger
    return try AddressSpace(configuration: configuration)
  }

  /// A region whose store has the thread that asks it end, for page 5.
  private static func deadly(_ moment: Moment, _ space: AddressSpace) throws -> (Region, WriteTracker?) {
    let store = UnrulyStore(pages: 16)
    store.set {
      $0.isQuick = false
      if moment == .reading {
        $0.reading = { pages throws(PinError) in if pages.contains(5) { KernelThread.exitCurrent() } }
      }
      if moment == .granting {
        $0.granting = { pages throws(PinError) in if pages.contains(5) { KernelThread.exitCurrent() } }
      }
    }
    let region = try space.map(.file(store, fillAround: .exact), pages: 16)
    let tracker =
      moment == .callback
      ? try region.trackWrites(.handlerThread) { write in if write.page == 5 { KernelThread.exitCurrent() } } : nil
    return (region, tracker)
  }

  @Test("K3: one ends in the middle: by default the process aborts and says why", arguments: Moment.allCases)
  func terminates(_ moment: Moment) async {
    let result = await #expect(processExitsWith: .signal(SIGABRT), observing: [\.standardErrorContent]) {
      [moment = moment as Moment] in
      let space = try Self.space(LogCapture(), patience: 5, policy: .terminate)
      let (region, tracker) = try Self.deadly(moment, space)
      region.poke(9, 5)
      while true { Kernel.pause(nanoseconds: 1_000_000) }
      _ = tracker
    }
    let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
    let atStore =
      text.contains("PinKit: serve faults (storeEnded): fault handler lost")
      && text.contains("A thread that waits for the region's store ended")
    // A page that the store's thread could not open at once is opened by a reader, which calls the callback then.
    let atReader = moment == .callback && text.contains("PinKit: serve faults (readerDied): fault handler lost")
    #expect(atStore || atReader, "\(text)")
  }

  @Test(
    "K3: one ends in the middle under .failRegion: who waits goes on, others are served, all can be closed",
    arguments: Moment.allCases)
  func failsRegion(_ moment: Moment) async {
    await #expect(processExitsWith: .success) { [moment = moment as Moment] in
      let log = LogCapture()
      let space = try Self.space(log, patience: 5, policy: .failRegion)
      let (region, tracker) = try Self.deadly(moment, space)
      let other = UnrulyStore(pages: 16)
      other.set { $0.isQuick = false }
      let spared = try space.map(.file(other, fillAround: .exact), pages: 16)
      let address = UInt64(region.addresses.start)
      check(ct_try_store(address + 5 * 4096, 9) != 0, "a write succeeded")
      try check(region.protection().failure?.code, is: .handlerLost)
      for page in 0..<16 { check(spared.peek(page), is: UInt8(page + 1)) }
      spared.poke(77, 4)
      try spared.flush()
      check(other.durableByte(4), is: 77)
      let words = ["a thread that waits for stores ended", "a fault reader ended"].prefix(moment == .callback ? 2 : 1)
      check(spin { log.texts(.critical).contains { text in words.contains { text.contains($0) } } }, is: true)
      _ = try? tracker?.stop()
      try region.unmap()
      try space.close()
    }
  }

  @Test("K3: one that ends while it waits for work is replaced")
  func idle() async {
    await #expect(processExitsWith: .success) {
      let log = LogCapture()
      let space = try Self.space(log, patience: 5, policy: .terminate)
      let isOver = Atomic<Bool>(false)
      TestHooks.set(.storeIdle) { _ in if !isOver.exchange(true, ordering: .relaxed) { KernelThread.exitCurrent() } }
      let store = UnrulyStore(pages: 16)
      store.set { $0.isQuick = false }
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      for page in 0..<16 { check(region.peek(page), is: UInt8(page + 1)) }
      while log.texts(.critical).isEmpty { Kernel.pause(nanoseconds: 1_000_000) }
      check(log.texts(.critical).count, is: 1)
      TestHooks.set(.storeIdle, nil)
      try space.close()
    }
  }

  @Test("K3: a store that is slow is reported, and is no death")
  func slow() async {
    await #expect(processExitsWith: .success) {
      let log = LogCapture()
      let space = try Self.space(log, patience: 1, policy: .terminate)
      let store = UnrulyStore(pages: 16)
      store.set {
        $0.isQuick = false
        $0.reading = { _ throws(PinError) in while log.texts(.critical).isEmpty { Kernel.pause(nanoseconds: 1_000_000) } }
      }
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      check(region.peek(5), is: 6)
      check(log.texts(.critical).count, is: 1)
      check(
        log.texts(.critical)[0].contains("a store has not answered for 1.0 s when asked for pages 5..<6"),
        log.texts(.critical)[0])
      try space.close()
    }
  }

  @Test("K3: a store that never answers fails its region; the region stays until the store has let go of it")
  func silent() async {
    await #expect(processExitsWith: .success) {
      let log = LogCapture()
      let space = try Self.space(log, patience: 0.1, policy: .failRegion)
      let store = UnrulyStore(pages: 16)
      let isInside = Atomic<Bool>(false)
      let mayGo = Atomic<Bool>(false)
      store.set {
        $0.isQuick = false
        $0.reading = { pages throws(PinError) in
          guard pages.contains(5) else { return }
          isInside.store(true, ordering: .releasing)
          while !mayGo.load(ordering: .acquiring) { Kernel.pause(nanoseconds: 1_000_000) }
        }
      }
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      region.poke(77, 2)
      check(ct_try_load(UInt64(region.addresses.start) + 5 * 4096) < 0, "a page came from nowhere")
      check(isInside.load(ordering: .acquiring), "the store was not asked")
      try check(region.protection().failure?.code, is: .timedOut)
      check(errorCode { try region.unmap() }, is: .timedOut)
      check(errorCode { try space.close() }, is: .timedOut)
      mayGo.store(true, ordering: .releasing)
      while errorCode({ try region.unmap() }) == .timedOut { Kernel.pause(nanoseconds: 1_000_000) }
      check(store.durableByte(2), is: 77)
      try space.close()
    }
  }
}
