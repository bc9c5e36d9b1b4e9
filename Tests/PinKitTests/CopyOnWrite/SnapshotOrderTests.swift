import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Races of readers and captures, held still by hooks. They are the process's: these tests run one after the other, and look only at
/// pages that no other suite has.
@Suite("Snapshot order", .serialized) struct SnapshotOrderTests {
  private static let page = 9001
  private static let pageCount = 9100

  private func with(_ mechanism: WriteTracking.Mechanism, _ body: (Region, Snapshot) throws -> Void) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: Self.pageCount)
    try region.write(version: 1, to: Self.page - 1..<Self.page + 2)
    let snapshot = try region.snapshot(.init(mechanism: mechanism))
    defer { for point in [TestHooks.Point.capturing, .readingLive, .removing, .losing] { TestHooks.set(point, nil) } }
    try body(region, snapshot)
    try space.close()
  }

  private func expectOld(_ snapshot: Snapshot) throws {
    let word = try snapshot.word(Self.page)
    #expect(word == Pattern.word(Self.page, 1, 0))
  }

  @Test(
    "W6: a page that is written between the look for its copy and the read of the region is found kept",
    arguments: Mechanisms.synchronous)
  func writeBeforeReading(_ mechanism: WriteTracking.Mechanism) throws {
    try with(mechanism) { region, snapshot in
      TestHooks.set(.readingLive) { page in
        guard page == Self.page else { return }
        do { try TestThread { try region.write(version: 2, to: CollectionOfOne(Self.page)) }.join() } catch {
          Issue.record("\(error)")
        }
      }
      try expectOld(snapshot)
      #expect(try region.load(fromByteOffset: Self.page * 4096, as: UInt64.self) == Pattern.word(Self.page, 2, 0))
    }
  }

  @Test("W6: the same where another snapshot is taken in between", arguments: Mechanisms.synchronous)
  func snapshotBeforeReading(_ mechanism: WriteTracking.Mechanism) throws {
    try with(mechanism) { region, snapshot in
      let other = Shared()
      TestHooks.set(.readingLive) { page in
        guard page == Self.page, other.add() == 1 else { return }
        do {
          try TestThread {
            let second = try region.snapshot()
            try region.write(version: 2, to: CollectionOfOne(Self.page))
            second.close()
          }.join()
        } catch { Issue.record("\(error)") }
      }
      try expectOld(snapshot)
    }
  }

  @Test("W6: one that is closed in between tells its reader", arguments: Mechanisms.synchronous)
  func closeBeforeReading(_ mechanism: WriteTracking.Mechanism) throws {
    try with(mechanism) { region, snapshot in
      TestHooks.set(.readingLive) { page in
        guard page == Self.page else { return }
        snapshot.close()
        do { try TestThread { try region.write(version: 2, to: CollectionOfOne(Self.page)) }.join() } catch {
          Issue.record("\(error)")
        }
      }
      #expect(code { _ = try snapshot.read(Self.page) } == .closed)
    }
  }

  @Test("W6: the copies of one that is closed stay for whoever reads of it, itself or another thread, and go then")
  func copiesStayForReaders() throws {
    for isOwn in [true, false] {
      try with(.mprotect) { region, snapshot in
        weak let store = try snapshot.openStore("look")
        try region.write(version: 2, to: CollectionOfOne(Self.page - 1))
        TestHooks.set(.readingLive) { page in
          guard page == Self.page else { return }
          if isOwn { snapshot.close() } else { _ = try? TestThread { snapshot.close() }.join() }
          #expect(store != nil)
        }
        #expect(store != nil)
        #expect(code { _ = try snapshot.read(Self.page) } == .closed)
        #expect(store == nil)
      }
    }
  }

  @Test("W6: a copy that is not complete is not taken for one", arguments: Mechanisms.synchronous)
  func readDuringCapture(_ mechanism: WriteTracking.Mechanism) throws {
    try with(mechanism) { region, snapshot in
      let held = HeldThreads(at: .capturing, Self.page - 8...Self.page)
      let writer = TestThread { try region.write(version: 2, to: CollectionOfOne(Self.page)) }
      defer { held.letGo() }
      try #require(held.first())
      try expectOld(snapshot)
      held.letGo()
      try writer.join()
      try expectOld(snapshot)
    }
  }

  @Test("W6: a writer goes on while a reader thread keeps its neighbours, and those stay protected until they are kept")
  func goesOnBeforeNeighbours() throws {
    let window = Self.page & ~127..<(Self.page | 127) + 1
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: Self.pageCount)
    try region.write(version: 1, to: window)
    let snapshot = try region.snapshot(.init(mechanism: .handlerThread))
    // Up to here its block is written densely enough for a window of 128 pages.
    try region.write(version: 2, to: (0..<14).map { Self.page & ~511 + 16 * $0 })
    let isCapturing = Shared()
    let isHeld = Shared()
    let mayGoOn = Shared()
    TestHooks.set(.capturing) { page in
      // Who came for one of the neighbours by itself would not be held.
      guard window.contains(page), page != Self.page, isCapturing.add() == 1 else { return }
      isHeld.value = 1
      _ = spin { mayGoOn.value == 1 }
      isHeld.value = 0
    }
    defer {
      mayGoOn.value = 1
      TestHooks.set(.capturing, nil)
    }
    try TestThread { try region.write(version: 2, to: CollectionOfOne(Self.page)) }.join()
    try #require(spin { isHeld.value == 1 })
    #expect(try snapshot.word(Self.page) == Pattern.word(Self.page, 1, 0))
    // Who writes elsewhere is served by another reader.
    try TestThread { try region.write(version: 2, to: CollectionOfOne(17)) }.join()
    #expect(mayGoOn.value == 0 && isHeld.value == 1)
    let other = TestThread { try region.write(version: 2, to: CollectionOfOne(Self.page + 1)) }
    try #require(spin { other.isAsleep })
    #expect(isCapturing.value == 1)
    #expect(try region.load(fromByteOffset: (Self.page + 1) * 4096, as: UInt64.self) == Pattern.word(Self.page + 1, 1, 0))
    mayGoOn.value = 1
    try other.join()
    for page in window { #expect(try snapshot.word(page) == Pattern.word(page, 1, 0)) }
    snapshot.close()
    try space.close()
  }

  /// Drops the page behind PinKit's back; who heard of it has not said so.
  private func drop(in region: Region, at point: TestHooks.Point = .removing) throws -> HeldThreads {
    let held = HeldThreads(at: point, Self.page...Self.page)
    let dropper = TestThread { try Memory.advise(region.addresses(of: Self.page..<Self.page + 1), .dontNeed) }
    let hasBegun = held.first()
    if !hasBegun { held.letGo() }
    try dropper.join()
    try #require(hasBegun)
    return held
  }

  @Test(
    "W6: a removal that was read and is not noted yet is waited for",
    arguments: [
      WriteTracking.Mechanism.handlerThread, .inPlace,
    ])
  func removalBeforeReading(_ mechanism: WriteTracking.Mechanism) throws {
    try with(mechanism) { region, snapshot in
      let held = try drop(in: region)
      defer { held.letGo() }
      let found = Mutex<PinError.Code?>(nil)
      let reader = TestThread {
        let code = code { _ = try snapshot.read(Self.page) }
        found.withLock { $0 = code }
      }
      _ = spin(forAtMost: 5) { reader.hasEnded || reader.isAsleep }
      held.letGo()
      try reader.join()
      #expect(found.withLock { $0 } == .snapshotLost)
    }
  }

  @Test(
    "W6: bytes that were kept after a removal are not taken for the old ones",
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace], [TestHooks.Point.removing, .losing])
  func removalBeforeKeeping(_ mechanism: WriteTracking.Mechanism, _ point: TestHooks.Point) throws {
    try with(mechanism) { region, snapshot in
      let held = try drop(in: region, at: point)
      defer { held.letGo() }
      // Its page is gone; only now is it kept.
      let set = region.attachments.find(SnapshotSet.self)!
      #expect(set.keepOwed(Self.page..<Self.page + 1) == .kept)
      held.letGo()
      #expect(spin { code { _ = try snapshot.read(Self.page) } == .snapshotLost })
    }
  }

  @Test(
    "W6: nor while the removal was read and is not noted yet",
    arguments: [
      WriteTracking.Mechanism.handlerThread, .inPlace,
    ])
  func removalBeforeReadingKept(_ mechanism: WriteTracking.Mechanism) throws {
    try with(mechanism) { region, snapshot in
      let isRemoving = Shared()
      let mayGoOn = Shared()
      TestHooks.set(.removing) { page in
        guard page == Self.page else { return }
        isRemoving.value = 1
        _ = spin { mayGoOn.value == 1 }
      }
      defer { mayGoOn.value = 1 }
      let dropper = TestThread { try Memory.advise(region.addresses(of: Self.page..<Self.page + 1), .dontNeed) }
      try #require(spin { isRemoving.value == 1 })
      try dropper.join()
      let set = region.attachments.find(SnapshotSet.self)!
      #expect(set.keepOwed(Self.page..<Self.page + 1) == .kept)
      let found = Mutex<PinError.Code?>(nil)
      let reader = TestThread {
        let code = code { _ = try snapshot.read(Self.page) }
        found.withLock { $0 = code }
      }
      _ = spin(forAtMost: 5) { reader.hasEnded || reader.isAsleep }
      mayGoOn.value = 1
      try reader.join()
      #expect(found.withLock { $0 } == .snapshotLost)
    }
  }

  @Test("W6: what is hidden while it is kept before a discard is kept all the same") func hiddenWhileKept() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 130)
    try region.write(version: 1, to: 0..<130)
    let snapshot = try region.snapshot()
    let hider = Mutex<TestThread?>(nil)
    // Other suites' snapshots keep pages of that number, too.
    let discarding = Kernel.threadID
    TestHooks.set(.capturing) { page in
      guard page == 0, Kernel.threadID == discarding, hider.withLock({ $0 == nil }) else { return }
      let thread = TestThread { try region.protect(64..<65, to: .none) }
      hider.withLock { $0 = thread }
      _ = spin(forAtMost: 5) { thread.isAsleep }
    }
    defer { TestHooks.set(.capturing, nil) }
    try region.discard(0..<130)
    try #require(hider.withLock { $0 }).join()
    for page in 0..<130 { #expect(try snapshot.word(page) == Pattern.word(page, 1, 0), "\(page)") }
    #expect(snapshot.failure == nil)
    snapshot.close()
    try space.close()
  }

  @Test("W6, P4: a pinned page that is hidden as a snapshot begins is kept like any other", arguments: [false, true])
  func hiddenAtTheInstant(_ isTracked: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 16)
    try region.write(version: 1, to: 0..<16)
    let tracker = isTracked ? try region.trackWrites() : nil
    let before = isTracked ? try region.snapshot() : nil
    try region.write(version: 2, to: 3..<4)
    let pin = try region.pin(5..<6, [.write])
    TestHooks.set(.arming) { _ in _ = try? region.protect(5..<6, to: .none) }
    defer { TestHooks.set(.arming, nil) }
    let snapshot = try region.snapshot()
    TestHooks.set(.arming, nil)
    for page in 0..<16 { #expect(try snapshot.word(page) == Pattern.word(page, page == 3 ? 2 : 1, 0), "\(page)") }
    #expect(snapshot.failure == nil)
    if let before { #expect(try snapshot.changes(since: before).contains(3)) }
    if let tracker { #expect(try tracker.collect().contains(3)) }
    pin.unpin()
    snapshot.close()
    before?.close()
    try space.close()
  }

  @Test("W6, K5: who reads a snapshot while its region is unmapped goes on when the store refuses that")
  func refusedUnmap() throws {
    let space = try AddressSpace.forTests()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store), pages: 8)
    region.poke(50, 3)
    let snapshot = try region.snapshot()
    region.poke(51, 3)
    let flushes = Shared()
    let reader = Mutex<TestThread?>(nil)
    store.set {
      $0.flushing = { () throws(PinError) in
        if flushes.add() == 1 {
          // It is flushed once more, when nobody can come in any more.
          region.poke(52, 3)
          return
        }
        check(region.gate.isClosed, "the store was asked too early")
        let thread = TestThread {
          let bytes = (try snapshot.read(3)[0], try snapshot.read(5)[0])
          check(bytes == (50, 6), "\(bytes)")
        }
        reader.withLock { $0 = thread }
        _ = spin(forAtMost: 5) { thread.isAsleep || thread.hasEnded }
        throw .broken
      }
    }
    #expect(errorCode { try region.unmap() } != nil)
    #expect(flushes.value == 2 && !region.gate.isClosed)
    let thread = try #require(reader.withLock { $0 })
    #expect(spin { thread.hasEnded }, "it waits for ever")
    store.set { $0.flushing = {} }
    snapshot.close()
    try region.unmap()
    try thread.join()
    try space.close()
  }

  @Test("W6: a snapshot waits for a discard that began while nothing was protected") func discardBeforeProtection() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 2 * Self.page)
    try region.store(UInt64(5), toByteOffset: Self.page * 4096)
    let held = HeldThreads(at: .dropping, Self.page...Self.page)
    defer {
      held.letGo()
      TestHooks.set(.dropping, nil)
    }
    let dropper = TestThread { try region.discard(Self.page..<Self.page + 1) }
    try #require(held.first())
    let first = Mutex<UInt64?>(nil)
    let kept = Mutex<Snapshot?>(nil)
    let taker = TestThread {
      let snapshot = try region.snapshot()
      let word = try unsafe snapshot.read(Self.page).withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
      first.withLock { $0 = word }
      kept.withLock { $0 = snapshot }
    }
    _ = spin(forAtMost: 5) { taker.isAsleep || taker.hasEnded }
    held.letGo()
    try dropper.join()
    try taker.join()
    let snapshot = try #require(kept.withLock { $0 })
    let later = try unsafe snapshot.read(Self.page).withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
    #expect(first.withLock { $0 } == later)
    snapshot.close()
    try space.close()
  }
}
