import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("Stores that fail") struct FileErrorTests {
  @Test(
    "A page that cannot be read is an error of its own, not its neighbours', and can be tried again",
    arguments: [true, false])
  func unreadable(isQuick: Bool) throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 32)
    let broken = Shared(1)
    store.set {
      $0.isQuick = isQuick
      $0.reading = { pages throws(PinError) in if pages.contains(5), broken.value == 1 { throw .broken } }
    }
    let region = try space.map(.file(store), pages: 32)
    #expect(errorCode { _ = try region.byte(5) } == .inputOutput)
    #expect(region.peek(4) == 5, "its neighbours are there")
    #expect(region.peek(6) == 7)
    var snapshot: Snapshot? = try region.snapshot()
    #expect(errorCode { _ = try region.clone() } == .inputOutput, "a clone has no store to try again")
    snapshot?.close()
    snapshot = nil
    broken.value = 0
    #expect(try region.byte(5) == 6)
    try space.close()
  }

  @Test("Whoever touches a page that cannot be read, or not be written, gets SIGBUS and EFAULT, never a hang or zeros")
  func signals() async {
    await #expect(processExitsWith: .success) { try Self.signalsInChild() }
  }

  private static func signalsInChild() throws {
    let space = try AddressSpace.forTriedFaults()
    let store = UnrulyStore(pages: 16)
    let broken = Shared(1)
    store.set {
      $0.reading = { pages throws(PinError) in if pages.contains(5), broken.value == 1 { throw .broken } }
      $0.granting = { pages throws(PinError) in if pages.contains(7), broken.value == 1 { throw .full } }
    }
    let region = try space.map(.file(store), pages: 16)
    let address = UInt64(region.addresses.start)
    for _ in 0..<20 {
      check(ct_try_load(address + 5 * 4096), is: -SIGBUS)
      check(ct_try_store(address + 7 * 4096, 9), is: SIGBUS)
      check(ct_try_load(address + 7 * 4096), is: 8)
    }
    check(ct_seen_code(), is: 2)  // BUS_ADRERR
    checkSystemCallFails(at: address + 5 * 4096)
    // All threads that wait are told.
    broken.value = 1
    let told = Shared()
    let threads = (0..<8).map { _ in
      TestThread { if ct_try_load(address + 5 * 4096) == -SIGBUS { told.add() } }
    }
    for thread in threads { try thread.join() }
    check(CInt(told.value), is: 8)
    broken.value = 0
    check(spin { ct_try_load(address + 5 * 4096) == 6 } ? 1 : 0, is: 1)
    check(spin { ct_try_store(address + 7 * 4096, 9) == 0 } ? 1 : 0, is: 1)
    try space.close()
    check(CInt(store.durableByte(7)), is: 9)
  }

  @Test("A flush that fails says so, keeps the pages, and the next one writes them") func failedFlush() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 16)
    let region = try space.map(.file(store, fillAround: .exact), pages: 16)
    for page in 0..<8 { region.poke(100, page) }
    store.set { $0.writing = { pages throws(PinError) in if pages.contains(3) { throw .full } } }
    #expect(errorCode { try region.flush() } == .outOfSpace)
    #expect(try region.filePageState(3).isDirty)
    #expect(try region.reclaim(0..<16) < 8, "what the store does not have stays")
    #expect(region.peek(3) == 100)
    #expect(errorCode { try region.flush() } == .outOfSpace, "again, and not a silent success")
    #expect(errorCode { try region.unmap() } == .outOfSpace, "nothing is lost by unmapping")
    #expect(errorCode { try space.close() } == .outOfSpace)
    region.poke(101, 4)
    store.set { $0.writing = { _ throws(PinError) in } }
    try region.flush()
    #expect((0..<8).map { store.durableByte($0) } == [100, 100, 100, 100, 101, 100, 100, 100])
    try space.close()
  }

  @Test("When the store cannot make pages durable, all of them are written again") func failedSync() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 16)
    let region = try space.map(.file(store, fillAround: .exact), pages: 16)
    for page in 0..<8 { region.poke(100, page) }
    store.set { $0.flushing = { () throws(PinError) in throw .broken } }
    #expect(errorCode { try region.flush() } == .inputOutput)
    #expect(try (0..<8).allSatisfy { try region.filePageState($0).isDirty })
    #expect(try region.reclaim(0..<16) == 0)
    store.set { $0.flushing = { () throws(PinError) in } }
    store.forgetCalls()
    try region.flush()
    #expect(store.written.sorted() == Array(0..<8))
    #expect((0..<8).allSatisfy { store.durableByte($0) == 100 })
    try space.close()
  }

  @Test("Bad arguments are typed errors, and nothing is left behind") func badArguments() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 4)
    #expect(errorCode { _ = try space.map(.file(store), pages: 5) } == .outOfBounds)
    #expect(errorCode { _ = try space.map(.file(store, fillAround: .block(3)), pages: 4) } == .invalidArgument)
    #expect(errorCode { _ = try space.map(.file(store, fillAround: .adaptive(maximum: 0)), pages: 4) } == .invalidArgument)
    let region = try space.map(.file(store), pages: 4)
    #expect(errorCode { try region.reclaim(0..<5) } == .outOfBounds)
    #expect(errorCode { try region.discard(0..<1) } == .unsupported)
    #expect(errorCode { _ = try region.trackWrites(.asynchronous) } == .inUse)
    let anonymous = try space.map(.anonymous, pages: 1)
    #expect(errorCode { try anonymous.flush() } == .unsupported)
    #expect(errorCode { try anonymous.reclaim(0..<1) } == .unsupported)
    try region.unmap()
    #expect(errorCode { try region.flush() } == .unmapped)
    try space.close()
  }
}
