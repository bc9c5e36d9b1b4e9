import CTestSupport
import Glibc
import Logging
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// K5: other code closes every descriptor it can reach, and has the numbers for files of its own then.
@Suite("K5: closed descriptors") struct ClosedDescriptorTests {
  static let low: CInt = 255
  static let all = CInt.max

  /// Seizes all numbers of a kind while the watchdog is held: between two numbers of one file it would make the first good by the second.
  private static func seize(_ kind: String, beside space: AddressSpace) throws -> CInt {
    let (isHeld, mayGo) = (Shared(), Shared())
    TestHooks.set(.watching) { _ in
      isHeld.value = 1
      while mayGo.value == 0 { Kernel.pause(nanoseconds: 1_000_000) }
    }
    defer {
      mayGo.value = 1
      TestHooks.set(.watching, nil)
    }
    while isHeld.value == 0 { try space.faultHandler().alarm.signal() }
    return unsafe ct_seize_descriptors(3, all, kind)
  }

  /// What `body` throws, in words.
  private static func failure(_ body: () throws -> Void) -> String {
    do { try body() } catch { return "\(error)" }
    return ""
  }

  /// A tracked region beside all that has descriptors, under `.failRegion`.
  private struct Host {
    let log = LogCapture()
    let tracked: Tracked
    let parent: Region
    let child: Region
    let snapshot: Snapshot
    let sealed: Region
    let sealer = RecordingSealer()
    let stored: Region
    let store: FileStore
    /// What clones and snapshots go by.
    let synchronous: WriteTracking.Mechanism

    init(_ mechanism: WriteTracking.Mechanism) throws {
      _ = ct_handle(SIGSEGV, CInt(ct_plain))
      _ = ct_handle(SIGBUS, CInt(ct_plain))
      let logger = log.logger
      tracked = try Tracked(
        mechanism,
        configure: {
          $0.failurePolicy = .failRegion
          $0.logger = logger
        })
      parent = try tracked.space.map(.pool, pages: 16)
      try parent.fill(with: 5)
      synchronous = mechanism == .asynchronous ? .handlerThread : mechanism
      child = try parent.clone(mechanism: synchronous)
      snapshot = try parent.snapshot(SnapshotOptions(mechanism: synchronous))
      sealed = try tracked.space.map(.pool, pages: 16)
      try sealed.setSealer(sealer)
      for page in 0..<16 { try sealed.setByte(6, page) }
      try sealed.seal(0..<8)
      let path = "/tmp/pinkit-closed-\(getpid())"
      store = try FileStore(path: path, creating: 16 * 4096, options: .init { $0.checksName = false })
      _ = unsafe unlink(path)
      stored = try tracked.space.map(.file(store), pages: 16)
      for page in 0..<4 { try stored.setByte(7, page) }
    }

    /// Threads of the program write to everything; each ends, whatever becomes of it.
    func write(_ value: UInt8, pages: Range<Int> = 0..<16) {
      let regions = [tracked.region, parent, child, sealed, stored]
      let writers = regions.map { region in
        HostThread {
          for page in pages {
            _ = ct_try_store(UInt64(region.addresses.start) + UInt64(page * region.pageSize), value)
          }
        }
      }
      for writer in writers { writer.join() }
    }

    func awaitWatchdog(_ isDone: () -> Bool) throws {
      while !isDone() {
        try tracked.space.faultHandler().alarm.signal()
        Kernel.pause(nanoseconds: 1_000_000)
      }
    }
  }

  @Test(
    "Descriptors of every kind lie above those that a loop up to 255 closes: nothing notices it", arguments: Mechanisms.all)
  func lowOnes(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(240)
      let host = try Host(mechanism)
      for kind in ["userfaultfd", "memfd:pinkit", "io_uring", "pagemap", "pinkit-closed"] {
        check(unsafe ct_low_descriptors_of(kind, Self.low + 1), is: 0, kind)
      }
      // The runtime of the tests may have one of its own.
      check(unsafe ct_low_descriptors_of("eventpoll", Self.low + 1) <= 1, "low epoll sets")
      check(unsafe ct_seize_descriptors(3, Self.low, "") >= 0, "no numbers were seized")
      host.write(9)
      for page in 0..<16 {
        check(ct_load(host.tracked.address(of: page)), is: 9)
        check(host.parent.peek(page), is: 9)
        check(host.child.peek(page), is: 9)
        check(host.sealed.peek(page), is: 9)
        check(host.stored.peek(page), is: 9)
        try check(host.snapshot.read(page)[0], is: 5)
      }
      try check(Array(host.tracked.tracker.collect().pages), is: Array(0..<16))
      check(Self.failure { try host.stored.flush() }, is: "")
      check(Self.failure { try check(host.child.clone(mechanism: host.synchronous).peek(3), is: 9) }, is: "")
      check(host.log.texts(.error) + host.log.texts(.critical), is: [])
      check(ct_check_seized(), is: 0)
      host.snapshot.close()
      check(Self.failure { try host.tracked.close() }, is: "")
      check(ct_check_seized(), is: 0)
    }
  }

  @Test(
    "All of them closed: writers end, causes are said, everything closes, and no file changes", arguments: Mechanisms.all)
  func allOfThem(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(240)
      let host = try Host(mechanism)
      let count = try Self.seize("", beside: host.tracked.space)
      check(count > 5, "no numbers were seized")
      host.write(9)
      host.write(10)
      try host.awaitWatchdog { host.log.texts(.critical).contains { $0.contains("the epoll set") } }
      check(ct_check_seized(), is: 0, "after writes")
      if mechanism == .mprotect {
        // It needs no descriptor.
        try check(Array(host.tracked.tracker.collect().pages), is: Array(0..<16))
      } else {
        check(errorCode { _ = try host.tracked.tracker.collect() }, is: .handlerLost)
      }
      check(errorCode { _ = try host.parent.clone() }, is: .handlerLost)
      check(errorCode { _ = try host.tracked.space.map(.pool, pages: 4) }, is: .handlerLost)
      let flushed = errorCode { try host.stored.flush() }
      check(flushed == .handlerLost || flushed == .descriptorLost, "\(String(describing: flushed))")
      check(errorCode { try host.store.flush() }, is: .descriptorLost)
      let said = host.log.texts(.critical)
      check(said.contains { $0.contains("the file of the frame pool was closed by other code") }, "\(said)")
      check(ct_check_seized(), is: 0, "after calls")
      // What is made now has descriptors of its own.
      let fresh = try host.tracked.space.map(pages: 8)
      let tracker = try fresh.trackWrites(mechanism)
      _ = try tracker.collect()
      fresh.poke(3, 5)
      try check(tracker.collect().runs, is: [5..<6])
      host.snapshot.close()
      try? host.stored.unmap()
      try? host.tracked.space.close()
      check(ct_check_seized(), is: 0, "after closing")
    }
  }

  @Test(
    "All of them closed, and the watchdog has not looked yet: no collection is empty without a word",
    arguments: Mechanisms.onUserfaultfd)
  func beforeTheWatchdog(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(240)
      let tracked = try Tracked(
        mechanism,
        configure: {
          $0.failurePolicy = .failRegion
          $0.readerCount = 1
        })
      // Readers look at their descriptors, too, when they have nothing to do.
      let isHeld = Atomic<Int>(0)
      for point in [TestHooks.Point.watching, .readerIdle] {
        TestHooks.set(point) { _ in
          _ = isHeld.add(1, ordering: .sequentiallyConsistent)
          while isHeld.load(ordering: .acquiring) > 0 { Kernel.pause(nanoseconds: 100_000) }
        }
      }
      while isHeld.load(ordering: .acquiring) < 2 { Kernel.pause(nanoseconds: 100_000) }
      check(unsafe ct_seize_descriptors(3, Self.all, "userfaultfd") >= 2, "no numbers were seized")
      ct_store(tracked.address(of: 3), 2)
      check(errorCode { _ = try tracked.tracker.collect() }, is: .handlerLost)
      isHeld.store(-100, ordering: .releasing)
      for point in [TestHooks.Point.watching, .readerIdle] { TestHooks.set(point, nil) }
      try? tracked.close()
      check(ct_check_seized(), is: 0)
    }
  }

  @Test("A clone whose pool lost one number goes on with the spare", arguments: Mechanisms.synchronous, [false, true])
  func poolSpare(_ mechanism: WriteTracking.Mechanism, forbidsKcmp: Bool) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, forbidsKcmp = forbidsKcmp as Bool] in
      ct_deadline(240)
      if forbidsKcmp { check(ct_forbid_kcmp(), is: 0) }
      let log = LogCapture()
      var configuration = AddressSpace.Configuration()
      configuration.logger = log.logger
      let space = try AddressSpace(configuration: configuration)
      let parent = try space.map(.pool, pages: 64)
      try parent.fill(with: 1)
      let child = try parent.clone(mechanism: mechanism)
      for round in 1...4 {
        let pool = try space.framePool()
        let number = pool.files.descriptor(round % pool.files.count)
        check(unsafe ct_seize_descriptors(number, number, ""), is: 1)
        child.poke(UInt8(round + 1), round)
        parent.poke(UInt8(round + 2), round)
        check(child.peek(round), is: UInt8(round + 1))
        check(parent.peek(round), is: UInt8(round + 2))
        while log.texts(.error).count < round { try space.faultHandler().alarm.signal() }
        check(log.texts(.error).last!.contains("its spare took over"), log.texts(.error).last!)
      }
      check(log.texts(.critical), is: [])
      try check(parent.clone().peek(9), is: 1)
      try space.close()
      check(ct_check_seized(), is: 0)
    }
  }

  @Test("The default policy aborts at a clone's write and says who closed what", arguments: Mechanisms.synchronous)
  func terminates(_ mechanism: WriteTracking.Mechanism) async {
    let result = await #expect(processExitsWith: .signal(SIGABRT), observing: [\.standardErrorContent]) {
      [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(240)
      let space = try AddressSpace()
      let parent = try space.map(.pool, pages: 4)
      try parent.fill(with: 1)
      let child = try parent.clone(mechanism: mechanism)
      guard try Self.seize("memfd:pinkit-pool", beside: space) == 2 * space.framePool().files.count else { exit(3) }
      while true { child.poke(2, 1) }
    }
    let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
    #expect(text.contains("PinKit: serve faults (poolClosed): fault handler lost"))
    #expect(text.contains("find the loop that closes descriptors"))
  }

  @Test(
    "Epoll sets and eventfds are told apart, and taken over or made anew", arguments: ["eventpoll", "eventfd"],
    [false, true])
  func events(_ kind: String, forbidsKcmp: Bool) async {
    await #expect(processExitsWith: .success) { [kind = kind as String, forbidsKcmp = forbidsKcmp as Bool] in
      ct_deadline(240)
      if forbidsKcmp { check(ct_forbid_kcmp(), is: 0) }
      let log = LogCapture()
      let tracked = try Tracked(.handlerThread, configure: { $0.logger = log.logger })
      for round in 1...3 {
        let count = try Self.seize(kind, beside: tracked.space)
        check(count >= 2, "\(kind) not found")
        // One that waits is served: readers go on with what there is.
        try tracked.expectExact()
        while log.texts(.critical).count < round { try tracked.space.faultHandler().alarm.signal() }
        check(log.texts(.critical).last!.contains("there is a new one"), log.texts(.critical).last!)
        try tracked.expectExact()
        check(ct_check_seized(), is: 0)
      }
      try tracked.close()
      check(ct_check_seized(), is: 0)
    }
  }
}
