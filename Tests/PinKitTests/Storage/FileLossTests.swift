import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// What becomes of a region over a store when something beneath it breaks: nothing reads as zeros, nothing hangs, nothing is lost unsaid.
@Suite("Regions over a store that lose something") struct FileLossTests {
  private static func space(patience: Double = 5) throws -> AddressSpace {
    var configuration = AddressSpace.Configuration()
    configuration.failurePolicy = .failRegion
    configuration.patience = patience
    configuration.logger = LogCapture().logger
    return try AddressSpace(configuration: configuration)
  }

  private static func catchSignals() {
    ct_deadline(40)
    for signal in [SIGBUS, SIGSEGV] { _ = ct_handle(signal, CInt(ct_siginfo)) }
  }

  /// What reading a byte gave, asked again and again over some ticks of the watchdog.
  private static func seen(_ address: UInt64) -> Set<CInt> {
    let end = Kernel.now() + 800_000_000
    var seen: Set<CInt> = []
    repeat { seen.insert(ct_try_load(address)) } while Kernel.now() < end
    return seen
  }

  @Test("K3: when the handler is gone, pages that are not there are errors and never zeros, those refused before among them")
  func neverZeros() async {
    await #expect(processExitsWith: .success) {
      Self.catchSignals()
      let space = try Self.space()
      let store = UnrulyStore(pages: 16)
      store.set { $0.reading = { pages throws(PinError) in if pages.contains(5) { throw .broken } } }
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      let address = UInt64(region.addresses.start)
      check(ct_try_load(address + 5 * 4096), is: -SIGBUS)
      try region.protection().fail(.readerDied)
      for page: UInt64 in [5, 9] {
        let bytes = Self.seen(address + page * 4096).filter { $0 >= 0 && $0 != CInt(page) + 1 }
        check(bytes, is: [], "page \(page)")
      }
      try region.unmap()
      try space.close()
    }
  }

  @Test(
    "K3: what had changed when the handler died reaches the store, the flush says what happened, and the region can be unmapped"
  )
  func salvage() async {
    await #expect(processExitsWith: .success) {
      Self.catchSignals()
      let space = try Self.space()
      let store = UnrulyStore(pages: 16)
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      let mirror = try SecondaryMMU(region)
      let pin = try region.pin(7..<8, .write)
      region.poke(77, 3)
      try unsafe mirror.withBytes(of: 4, for: .writing) { unsafe $0[0] = 78 }
      try unsafe pin.withUnsafeMutableBytes { unsafe $0[0] = 79 }
      try region.protection().fail(.readerDied)
      store.set { $0.writing = { _ throws(PinError) in throw .broken } }
      check(errorCode { try region.flush() }, is: .inputOutput, "the store's own error")
      check(errorCode { try region.unmap() }, is: .inputOutput)
      store.set { $0.writing = { _ throws(PinError) in } }
      check(errorCode { try region.flush() }, is: .handlerLost)
      check((3...4).map { store.durableByte($0) }, is: [77, 78])
      check(store.durableByte(7), is: 79)
      try unsafe pin.withUnsafeMutableBytes { unsafe $0[0] = 80 }
      check(errorCode { try region.unmap() }, is: .pinned)
      pin.unpin()
      try region.unmap()
      check(store.durableByte(7), is: 80)
      mirror.close()
      try space.close()
    }
  }

  @Test("K3: who waits for a page that is refused is told, also if other code has closed the number it is woken by")
  func wokenBySpare() async {
    await #expect(processExitsWith: .success) {
      Self.catchSignals()
      let space = try Self.space()
      let store = UnrulyStore(pages: 16)
      store.set {
        $0.isQuick = false
        $0.reading = { pages throws(PinError) in if pages.contains(5) { throw .broken } }
      }
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      let address = UInt64(region.addresses.start)
      Injection.arm(.wake, .badFileDescriptor)
      check(ct_try_load(address + 5 * 4096), is: -SIGBUS)
      check(Injection.count, is: 1)
      check(ct_try_load(address + 6 * 4096), is: 7)
      try space.close()
    }
  }

  @Test("A page that is refused while others are let go of is let go of later")
  func refusedForEver() async {
    await #expect(processExitsWith: .success) {
      Self.catchSignals()
      let space = try Self.space()
      let store = UnrulyStore(pages: 16)
      let broken = Shared(1)
      store.set { $0.reading = { pages throws(PinError) in if broken.value == 1, pages.lowerBound >= 5 { throw .broken } } }
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      let address = UInt64(region.addresses.start)
      check(ct_try_load(address + 5 * 4096), is: -SIGBUS)
      // Page 6 is being refused for as long as the watchdog needs to lift what there is.
      TestHooks.set(.refusing) { page in if page == 6 { Kernel.pause(nanoseconds: 500_000_000) } }
      check(ct_try_load(address + 6 * 4096), is: -SIGBUS)
      TestHooks.set(.refusing, nil)
      broken.value = 0
      check(spin { ct_try_load(address + 6 * 4096) == 7 }, is: true, "it can be read again")
      try check(region.byte(6), is: 7)
      try space.close()
    }
  }

  @Test("Pages that came in before memory ran out can be written; the one that did not is an error")
  func partialFill() async {
    await #expect(processExitsWith: .success) {
      Self.catchSignals()
      let space = try Self.space(patience: 0.3)
      let store = UnrulyStore(pages: 16)
      store.set { $0.isQuick = false }
      let region = try space.map(.file(store, fillAround: .block(16)), pages: 16)
      // Three mappings: the kernel refuses the whole run, and the pages go in one by one.
      try region.protect(12..<13)
      let address = UInt64(region.addresses.start)
      Injection.arm(.copy, .noMemory, skip: 4, times: 1_000_000)
      check(ct_try_load(address + 9 * 4096), is: -SIGBUS)
      Injection.disarm()
      store.set { $0.isQuick = true }
      try check(region.filePageState(1).isPresent, is: true)
      // A thread that hangs in the fault never gets to the end.
      for page: UInt64 in 0..<3 { check(ct_try_store(address + page * 4096, 99), is: 0) }
      check(spin { ct_try_load(address + 9 * 4096) == 10 }, is: true)
      try space.close()
      check((0..<3).map { store.durableByte($0) }, is: [99, 99, 99])
    }
  }

  @Test("Pages that other code drops with madvise(2) can be written on, lose nothing, and are never written back as zeros")
  func dropped() async {
    await #expect(processExitsWith: .success) {
      Self.catchSignals()
      let space = try Self.space()
      let store = UnrulyStore(pages: 16)
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      for page in 0..<8 { region.poke(100, page) }
      func drop(_ pages: Range<Int>, _ advice: CInt) {
        let bytes = region.addressesUnchecked(of: pages)
        check(unsafe madvise(UnsafeMutableRawPointer(bitPattern: bytes.start)!, bytes.count, advice), is: 0)
      }
      drop(0..<4, MADV_DONTNEED)
      let address = UInt64(region.addresses.start)
      for page: UInt64 in 0..<4 { check(ct_try_store(address + page * 4096 + 1, 101), is: 0) }
      check((0..<4).map { region.peek($0) }, is: [100, 100, 100, 100])
      try region.flush()
      check((0..<4).map { store.durableByte($0, at: 1) }, is: [101, 101, 101, 101])
      for page in 0..<8 { region.poke(102, page) }
      drop(2..<6, MADV_REMOVE)
      try region.flush()
      check((0..<8).map { store.durableByte($0) }, is: [102, 102, 100, 100, 100, 100, 102, 102])
      check((0..<8).map { region.peek($0) }, is: [102, 102, 100, 100, 100, 100, 102, 102])
      try space.close()
    }
  }

  @Test(
    "A child of fork() that drops a region over a store leaves its parent's store alone",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals and has no child of fork()"))
  func child() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(40)
      let space = try Self.space()
      let store = UnrulyStore(pages: 16)
      var region: Region? = try space.map(.file(store, fillAround: .exact), pages: 16)
      region?.poke(9, 3)
      let before = store.calls
      let child = ct_fork()
      if child == 0 {
        ct_unblock_signals()
        ct_alarm(10)
        region = nil
        ct_exit(store.calls == before ? 0 : 1)
      }
      check(ct_wait(child), is: 0)
      try region?.unmap()
      region = nil
      try space.close()
      check(store.durableByte(3), is: 9)
    }
  }

  @Test("A snapshot's page that the store cannot read is an error of the reader, and can be read later")
  func unreadableSnapshot() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(40)
      let space = try Self.space()
      let store = UnrulyStore(pages: 16)
      let broken = Shared(1)
      store.set { $0.reading = { pages throws(PinError) in if broken.value == 1, pages.contains(5) { throw .broken } } }
      let region = try space.map(.file(store), pages: 16)
      let snapshot = try region.snapshot()
      check(errorCode { _ = try snapshot.read(5) }, is: .inputOutput)
      try check(snapshot.read(6)[0], is: 7)
      broken.value = 0
      try check(snapshot.read(5)[0], is: 6)
      region.poke(99, 5)
      try check(snapshot.read(5)[0], is: 6)
      snapshot.close()
      try space.close()
    }
  }
}
