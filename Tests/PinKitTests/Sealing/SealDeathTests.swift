import CTestSupport
import Glibc
import Logging
import Synchronization
import Testing

@testable import PinKit

/// Ends the thread that opens one page, when half of the page is open.
private final class DyingSealer: PageSealer {
  let inner = RecordingSealer()
  let doomed = Shared(-1)
  private let wait = Mutex(Wait())
  var recordSize: Int { inner.recordSize }

  private struct Wait: Sendable {
    var body: @Sendable () -> Void = {}
  }

  /// `waiting` runs before the thread ends.
  func die(at page: Int, waiting body: @escaping @Sendable () -> Void) {
    wait.withLock { $0.body = body }
    doomed.value = page
  }

  func seal(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeMutableRawBufferPointer
  ) throws(PinError) { try unsafe inner.seal(page, identity: identity, record: record) }

  func open(
    _ page: UnsafeMutableRawBufferPointer, identity: PageIdentity, record: UnsafeRawBufferPointer
  ) throws(PinError) {
    try unsafe inner.open(page, identity: identity, record: record)
    guard Kernel.isInFaultPath, identity.page == doomed.value else { return }
    doomed.value = -1
    // Sealed again, and then its first half put back in plain.
    let half = unsafe UnsafeMutableRawBufferPointer(rebasing: page[..<(page.count / 2)])
    let plain = unsafe [UInt8](half)
    let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: 16, alignment: 8)
    try unsafe inner.seal(page, identity: identity, record: scratch)
    unsafe half.copyBytes(from: plain)
    wait.withLock { $0 }.body()
    KernelThread.exitCurrent()
  }
}

@Suite("K3: the death of a thread that opens a sealed page") struct SealDeathTests {
  private static func make(_ policy: AddressSpace.FailurePolicy = .failRegion) throws -> (
    AddressSpace, Region, DyingSealer, LogCapture
  ) {
    _ = ct_handle(SIGBUS, CInt(ct_siginfo))
    _ = ct_handle(SIGSEGV, CInt(ct_siginfo))
    let log = LogCapture()
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = policy
    configuration.readerCount = 3
    configuration.logger = log.logger
    let space = try AddressSpace(configuration: configuration)
    let sealer = DyingSealer()
    return (space, try region(space, sealer), sealer, log)
  }

  private static func region(_ space: AddressSpace, _ sealer: DyingSealer) throws -> Region {
    let region = try space.map(.pool, pages: 16)
    try region.setSealer(sealer)
    for page in 0..<16 { for place in [0, 2048, 4095] { region.poke(UInt8(page + 1), page, at: place) } }
    return region
  }

  private static func address(_ region: Region, _ page: Int, _ offset: Int = 0) -> UInt64 {
    UInt64(region.addresses.start) + UInt64(page * 4096 + offset)
  }

  @Test("K3, S1: the region fails closed: whoever waits is woken, nobody reads half of a page, other regions go on")
  func failsClosed() async {
    await #expect(processExitsWith: .success) { try Self.failsClosedInChild() }
  }

  private static func failsClosedInChild() throws {
    ct_deadline(60)
    let (space, region, sealer, log) = try make()
    let other = try Self.region(space, sealer)
    try other.seal(0..<16)
    try region.seal(0..<12)
    let pin = try region.pin(13..<14)
    let waiters = Mutex<[TestThread]>([])
    let isDying = Shared()
    sealer.die(at: 3) {
      isDying.value = 1
      _ = spin { waiters.withLock { $0.count == 5 && $0.allSatisfy(\.isAsleep) } }
    }
    let found = (0..<2).map { _ in Shared(1000) }
    let codes = Findings()
    let first = TestThread { found[0].value = Int(ct_try_load(address(region, 3))) }
    check(spin { isDying.value == 1 }, "the page is being opened")
    let threads = [
      first,
      TestThread { found[1].value = Int(ct_try_load(address(region, 3, 4095))) },
      TestThread { codes.note("\(String(describing: errorCode { try region.makeAccessible(3..<4) }))") },
      TestThread { codes.note("\(String(describing: errorCode { _ = try region.pin(3..<4) }))") },
      TestThread { codes.note("\(String(describing: errorCode { try region.seal(0..<16) }))") },
    ]
    waiters.withLock { $0 = threads }
    for thread in threads { try thread.join() }
    check(found.map(\.value), is: [Int(-SIGBUS), Int(-SIGBUS)])
    check(codes.all, is: [String](repeating: "\(String(describing: PinError.Code?.some(.handlerLost)))", count: 3))
    while log.texts(.critical).count < 2 { Kernel.relax() }
    check(log.texts(.critical).contains { $0.contains("readerDied") }, "\(log.texts(.critical))")

    let calls: [(String, () throws -> Void)] = [
      ("makeAccessible", { try region.makeAccessible(3..<4) }), ("a load", { _ = try region.byte(3) }),
      ("a load of an open page", { _ = try region.byte(14) }), ("a pin", { _ = try region.pin(3..<4) }),
      ("a pin of an open page", { _ = try region.pin(14..<15) }), ("a lookup", { _ = try region.lookUp(3) }),
      ("seal", { try region.seal(14..<15) }), ("snapshot", { _ = try region.snapshot() }),
      ("clone", { _ = try region.clone() }), ("trackWrites", { _ = try region.trackWrites() }),
    ]
    for (name, call) in calls { check(errorCode { try call() }, is: .handlerLost, name) }
    try check(region.isSealed(3), "it is not taken for open")
    for page in [3, 5, 14] { check(ct_try_load(address(region, page)), is: -SIGBUS, "a pointer at page \(page)") }
    unsafe pin.withUnsafeBytes { check(unsafe $0[0], is: 14, "what was promised before stays") }
    pin.unpin()

    for page in 0..<16 { check(other.peek(page), is: UInt8(page + 1), "another region") }
    try other.seal(0..<16)
    try check(other.byte(4), is: 5)
    try region.unmap()
    try space.close()
  }

  @Test("K3: with the default policy the process ends and says why") func terminates() async {
    let result = await #expect(processExitsWith: .signal(SIGABRT), observing: [\.standardErrorContent]) {
      ct_deadline(60)
      let (_, region, sealer, _) = try Self.make(.terminate)
      try region.seal(0..<8)
      sealer.die(at: 3) {}
      _ = ct_load(Self.address(region, 3))
      exit(3)
    }
    let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
    #expect(text.contains("PinKit: serve faults (readerDied): fault handler lost"))
  }

  @Test("K3, S1: after a region failed with all its pages open nothing is sealed any more: nobody would be there to open it")
  func nothingIsSealedAfterwards() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let (space, _, sealer, log) = try Self.make()
      let region = try space.map(.pool, pages: 16)
      for page in 0..<16 { region.poke(UInt8(page + 1), page) }
      try region.setSealer(sealer)
      // The first write to a page, in which a reader ends.
      TestHooks.set(.deciding) { page in if page == 2 { KernelThread.exitCurrent() } }
      region.poke(77, 2)
      TestHooks.set(.deciding, nil)
      while log.texts(.critical).count < 2 { Kernel.relax() }
      check(errorCode { try region.seal(4..<6) }, is: .handlerLost)
      try check(!region.isSealed(4), "sealed")
      check(region.peek(4), is: 5)
      check(region.peek(2), is: 77)
      try check(region.byte(4), is: 5)
      try space.close()
    }
  }
}
