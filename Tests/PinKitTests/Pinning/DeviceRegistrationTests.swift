import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite(
  "Pages that a driver has registered", .serialized,
  .enabled(if: Umem.isAvailable, "needs AF_XDP (XDP_UMEM_REG), the oracle"))
struct DeviceRegistrationTests {
  /// Of a file of a file system no long-term pin for writing is to be had.
  private static let unfiled = Combination.all.filter { $0.subject != .adoptedFile }
  private static let synchronous = unfiled.filter { $0.mechanism != .asynchronous }

  private func messages(_ space: AddressSpace) -> UInt64 {
    space.counters[.messages] + space.counters[.inPlaceFaults] + space.counters[.mprotectFaults]
  }

  @Test("P8: armed memory is refused without a word, and taken once it is pinned", arguments: unfiled)
  func armed(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let tracker = try region.trackWrites(combination.mechanism)
      if combination.mechanism != .asynchronous {
        let before = messages(space)
        #expect(Umem.refusals.contains(region.umemErrno(1..<5)))
        #expect(messages(space) == before)
        #expect(try tracker.collect().isEmpty)
      }
      let registration = try unsafe region.register(1..<5) { bytes in
        let socket = try unsafe Umem.register(bytes)
        return { close(socket) }
      }
      // And stays so: whoever comes later finds it open, also where the region maps it.
      for _ in 0..<3 {
        #expect(try tracker.collect().runs == [1..<5])
        #expect(region.umemErrno(1..<5) == 0)
      }
      try registration.close()
      #expect(try tracker.collect().runs == [1..<5])
      #expect(try tracker.collect().isEmpty)
      if combination.mechanism != .asynchronous { #expect(Umem.refusals.contains(region.umemErrno(1..<5))) }
    }
    try space.close()
  }

  @Test("P8: what is pinned before it is tracked stays open, too", arguments: unfiled)
  func pinnedFirst(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 8) { region in
      let pin = try region.pin(2..<4, [.write, .longTerm])
      for page in 2..<4 { #expect(try isPresent(region, page)) }
      let tracker = try region.trackWrites(combination.mechanism)
      #expect(region.umemErrno(2..<4) == 0)
      try tracker.pause()
      try tracker.resume()
      #expect(region.umemErrno(2..<4) == 0)
      if combination.mechanism != .asynchronous { #expect(Umem.refusals.contains(region.umemErrno(4..<5))) }
      #expect(try tracker.collect().runs == [2..<4])
      pin.unpin()
    }
    try space.close()
  }

  private func isPresent(_ region: Region, _ page: Int) throws -> Bool {
    // Pool pages are there where the pool maps them.
    let start = try region.frames?.directAddresses(of: page).start ?? region.addresses(of: page).start
    var isPresent = false
    try PageMap().scan(AddressRange(start: start, count: 4096), PageMap.Query(anyOf: .present)) { _, _ in isPresent = true }
    return isPresent
  }

  @Test("P8/W6: a snapshot has the bytes of its moment, and pinned pages are open again after it", arguments: synchronous)
  func snapshots(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 8) { region in
      try region.fill(with: 1)
      let older = try region.snapshot(.init(mechanism: combination.mechanism))
      let start = Shared()
      let registration = try unsafe region.register(2..<4) { bytes in
        start.value = Int(bitPattern: bytes.baseAddress)
        let socket = try unsafe Umem.register(bytes)
        return { close(socket) }
      }
      #expect(Region.deviceWrite(2, to: UInt(start.value)))
      let newer = try region.snapshot()
      #expect(region.umemErrno(2..<4) == 0)
      #expect(Region.deviceWrite(3, to: UInt(start.value)))
      region.poke(4, 3)
      #expect(try byte(2, of: older) == 1 && byte(3, of: older) == 1)
      #expect(try byte(2, of: newer) == 2 && byte(3, of: newer) == 1)
      #expect(region.peek(2) == 3 && region.peek(3) == 4)
      #expect(try newer.changes(since: older).runs == [2..<4])
      try registration.close()
      let last = try region.snapshot()
      #expect(try last.changes(since: newer).runs == [2..<4])
      #expect(last.capturedBytes == 0 && older.failure == nil && newer.failure == nil)
      for snapshot in [older, newer, last] { snapshot.close() }
    }
    try space.close()
  }

  private func byte(_ page: Int, of snapshot: Snapshot) throws -> UInt8 {
    var bytes = [UInt8](repeating: 0, count: snapshot.pageSize)
    try unsafe bytes.withUnsafeMutableBytes { try unsafe snapshot.copy(page..<page + 1, into: $0) }
    return bytes[0]
  }

  @Test("P8: a missing page of a store is refused without a word, and there once it is pinned")
  func missing() throws {
    let space = try AddressSpace.forTests()
    let store = PlainStore(pages: 16)
    let region = try space.map(.file(store, fillAround: .exact), pages: 16)
    let before = space.counters[.messages]
    #expect(Umem.refusals.contains(region.umemErrno(3..<6)))
    #expect(space.counters[.messages] == before && store.inner.calls.isEmpty)
    let start = Shared()
    let registration = try unsafe region.register(3..<6) { bytes in
      start.value = Int(bitPattern: bytes.baseAddress)
      let socket = try unsafe Umem.register(bytes)
      return { close(socket) }
    }
    #expect(Region.deviceWrite(77, to: UInt(start.value) + 4096))
    #expect((3..<6).map { region.peek($0) } == [4, 77, 6])
    try registration.close()
    try region.flush()
    #expect(store.inner.byte(4) == 77)
    try region.unmap()
    try space.close()
  }

  @Test(
    "P8: shared pages are the clone's own once they are registered, and the template is untouched",
    arguments: Mechanisms.synchronous)
  func shared(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let template = try space.map(.pool, pages: 8)
    try template.fill(with: 1)
    let clone = try template.clone(mechanism: mechanism)
    // Of its own it has none in two places.
    try clone.store(UInt8(5), toByteOffset: 3 * 4096)
    #expect(Umem.refusals.contains(clone.umemErrno(2..<6)))
    let start = Shared()
    let registration = try unsafe clone.register(2..<6) { bytes in
      start.value = Int(bitPattern: bytes.baseAddress)
      let socket = try unsafe Umem.register(bytes)
      return { close(socket) }
    }
    for page in 0..<4 { #expect(Region.deviceWrite(UInt8(10 + page), to: UInt(start.value + page * 4096))) }
    #expect((2..<6).map { clone.peek($0) } == [10, 11, 12, 13])
    #expect((0..<8).allSatisfy { template.peek($0) == 1 })
    // A clone of what a device writes has the bytes of its moment.
    let later = try clone.clone()
    #expect(Region.deviceWrite(99, to: UInt(start.value)))
    #expect(clone.peek(2) == 99 && later.peek(2) == 10)
    #expect(clone.umemErrno(2..<6) == 0)
    try registration.close()
    for region in [later, clone, template] { try region.unmap() }
    try space.close()
  }

  @Test("P8: a sealed page is refused without a word, and opened for as long as it is registered")
  func sealed() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    try region.setSealer(RecordingSealer())
    for page in 0..<8 { try region.setByte(UInt8(page + 1), page) }
    try region.seal(0..<8)
    #expect(Umem.refusals.contains(region.umemErrno(2..<4)))
    #expect(try region.isSealed(2))
    let start = Shared()
    let registration = try unsafe region.register(2..<4) { bytes in
      start.value = Int(bitPattern: bytes.baseAddress)
      let socket = try unsafe Umem.register(bytes)
      return { close(socket) }
    }
    #expect(ct_load(UInt64(start.value)) == 3)
    #expect(errorCode { try region.seal(2..<4) } == .busy)
    #expect(Region.deviceWrite(50, to: UInt(start.value)))
    try registration.close()
    try region.seal(2..<4)
    #expect(region.peek(2) == 50 && region.peek(3) == 4)
    try space.close()
  }

  @Test("P8/P10: a pin for reading opens nothing for a driver that writes", arguments: Mechanisms.synchronous)
  func readOnly(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 8)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    #expect(throws: Umem.Refusal.self) {
      _ = try unsafe region.register(2..<4, for: .reading) { bytes in
        let socket = try unsafe Umem.register(bytes)
        return { close(socket) }
      }
    }
    #expect(try !region.mayBePinned(2))
    #expect(try tracker.collect().isEmpty)
    let registration = try unsafe region.register(2..<4, for: .reading) { _ in {} }
    #expect(try region.mayBePinned(2))
    try registration.close()
    #expect(try tracker.collect().isEmpty && !region.mayBePinned(2))
    try space.close()
  }

  @Test(
    "P8: what a snapshot has closed for a moment is opened, and the driver asked again", arguments: Mechanisms.synchronous)
  func closedMeanwhile(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 3_400)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    // Hooks are everybody's: pages that no other test has.
    var calls = 0
    let registration = try unsafe region.register(3_333..<3_335) { bytes in
      calls += 1
      var held: HeldThreads?
      var taking: TestThread?
      if calls == 1 {
        held = HeldThreads(at: .capturing, 3_333..<3_335)
        taking = TestThread { try region.snapshot().close() }
        #expect(held?.first() == true)
      }
      defer {
        TestHooks.set(.capturing, nil)
        held?.letGo()
        try? taking?.join()
      }
      let socket = try unsafe Umem.register(bytes)
      return { close(socket) }
    }
    #expect(calls == 2)
    try registration.close()
    try tracker.stop()
    try space.close()
  }

  @Test("P8: what is undone is undone in order, whoever undoes it", arguments: [true, false]) func order(_ isDropped: Bool)
    throws
  {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let log = Mutex<[String]>([])
    do {
      let registration = try unsafe region.register(1..<3) { bytes in
        log.withLock { $0.append("registered \(bytes.count), pinned \((try? region.mayBePinned(2)) == true)") }
        return { log.withLock { $0.append("unregistered, pinned \((try? region.mayBePinned(2)) == true)") } }
      }
      #expect(registration.pages == 1..<3 && registration.region === region)
      #expect(errorCode { try region.discard(1..<2) } == .pinned)
      if !isDropped {
        try registration.close()
        #expect(try !region.mayBePinned(2))
        try registration.close()
      }
    }
    #expect(log.withLock { $0 } == ["registered 8192, pinned true", "unregistered, pinned true"])
    #expect(try !region.mayBePinned(2))
    try space.close()
  }

  private struct Trouble: Error {}

  @Test("P8: a registration that throws leaves nothing pinned") func throwing() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 8)
    #expect(throws: Trouble.self) { _ = try unsafe region.register(1..<3) { _ in throw Trouble() } }
    #expect((0..<8).allSatisfy { !region.table[$0].isPinned })
    try region.protect(4..<5)
    var wasCalled = false
    #expect(
      errorCode {
        _ = try unsafe region.register(2..<6) { _ in
          wasCalled = true
          return {}
        }
      } == .accessDenied)
    #expect(!wasCalled && (0..<8).allSatisfy { !region.table[$0].isPinned })
    try space.close()
  }

  @Test("P8/P7: what a driver does not give back stays pinned") func unregistrationFails() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 8)
    let tracker = try region.trackWrites()
    let isStuck = Mutex(true)
    let registration = try unsafe region.register(1..<3) { _ in { if isStuck.withLock({ $0 }) { throw Trouble() } } }
    #expect(throws: Trouble.self) { try registration.close() }
    #expect(try region.mayBePinned(1) && tracker.collect().runs == [1..<3])
    isStuck.withLock { $0 = false }
    try registration.close()
    #expect(try !region.mayBePinned(1) && tracker.collect().runs == [1..<3])
    try tracker.stop()
    try space.close()
  }

  @Test(
    "P8/P1: a file that must hear of writes is refused",
    .enabled(if: ForeignMemory.isTemporaryDirectoryOnDisk, "needs /tmp on a disk"))
  func files() throws {
    let space = try AddressSpace.forTests()
    try Subject.adoptedFile.with(space, pages: 4) { region in
      #expect(errorCode { _ = try unsafe region.register(0..<1) { _ in {} } } == .needsDirtyTracking)
      try unsafe region.register(0..<1, for: .reading) { _ in {} }.close()
    }
    try space.close()
  }

  @Test(
    "W5/W6: writers, a device, collections and snapshots beside each other lose and tear nothing",
    arguments: Mechanisms.synchronous)
  func beside(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 4)
    let tracker = try region.trackWrites(mechanism)
    let pin = try region.pin(1..<2, .write)
    let isOver = Shared()
    // All words of a page are the same but while they are being written, one after the other.
    let writer = TestThread {
      ct_unblock_signals()
      var round: UInt64 = 0
      while isOver.value == 0 {
        round += 1
        for word in 0..<512 { ct_store_word(UInt64(region.addresses.start) + UInt64(4096 + word * 8), round) }
      }
    }
    var last: UInt64 = 0
    for _ in 0..<200 {
      let snapshot = try region.snapshot()
      var words = [UInt64](repeating: 0, count: 512)
      try unsafe words.withUnsafeMutableBytes { try unsafe snapshot.copy(1..<2, into: $0) }
      // At any moment: some words are of this round, those behind them of the round before.
      #expect(words[0] >= last && zip(words, words.dropFirst()).allSatisfy { $0 == $1 || $0 == $1 + 1 })
      #expect(words[0] - words[511] <= 1, "torn: \(words[0]) and \(words[511])")
      last = words[0]
      snapshot.close()
      #expect(try tracker.collect().contains(1))
    }
    isOver.value = 1
    try writer.join()
    pin.unpin()
    try tracker.stop()
    try region.unmap()
    try space.close()
  }
}

/// A store that does not ask to hear of writes.
private final class PlainStore: PageStore {
  let inner: UnrulyStore
  let geometry: StoreGeometry
  init(pages: Int) {
    inner = UnrulyStore(pages: pages)
    geometry = StoreGeometry(byteCount: pages * 4096, needsDirtyTracking: false)
  }
  func read(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) throws(PinError) {
    try unsafe inner.read(pages, into: memory)
  }
  func write(_ transfers: [PageTransfer]) -> [PinError?] { inner.write(transfers) }
  func flush() throws(PinError) { try inner.flush() }
}
