import CTestSupport
import Glibc
import Testing

@testable import PinKit

@Suite("The order in which pages of a store become writable and clean") struct FileOrderTests {
  /// Whether the CPU mapping would let a write through.
  private func isWriteProtected(_ region: Region, _ page: Int) throws -> Bool {
    var isWritten = false
    let query = PageMap.Query(required: .written, anyOf: .present, returned: .written)
    try PageMap().scan(region.addressesUnchecked(of: page..<page + 1), query) { _, _ in isWritten = true }
    return !isWritten
  }

  @Test("N3: page locked, the store asked, then writable, then unlocked", arguments: [true, false])
  func orderOfWriting(isQuick: Bool) throws {
    // Hooks hear of other tests' pages, too.
    let page = isQuick ? 4711 : 4712
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 5000)
    let region = try space.map(.file(store, fillAround: .exact), pages: 5000)
    _ = region.peek(page)
    let seen = Findings()
    store.set {
      $0.isQuick = isQuick
      $0.granting = { pages throws(PinError) in
        let state = try region.frameState(page)
        if pages != page..<page + 1 { seen.note("asked for \(pages)") }
        if !state.isLocked { seen.note("the page was not locked when its store was asked") }
        if region.table[page].contains(.open) { seen.note("the page was open when its store was asked") }
        if (try? self.isWriteProtected(region, page)) != true { seen.note("the page was writable when its store was asked") }
        if state.isDirty { seen.note("the page was dirty when its store was asked") }
      }
    }
    #expect(try isWriteProtected(region, page))
    let unlockedTooEarly = Shared()
    TestHooks.set(.unprotected) { opened in
      // It can be written now, and is locked still.
      if opened == page, (try? region.frameState(page).isLocked) != true { unlockedTooEarly.add() }
    }
    defer { TestHooks.set(.unprotected, nil) }
    region.poke(77, page)
    #expect(seen.all == [])
    #expect(unlockedTooEarly.value == 0)
    #expect(store.calls.filter { $0 == .makeWritable(page..<page + 1) }.count == 1)
    #expect(spin { (try? region.frameState(page).isLocked) == false })
    #expect(try !isWriteProtected(region, page))
    try space.close()
  }

  @Test(
    "N3: A store that refuses leaves the page read-only and clean, and the writer gets its error", arguments: [true, false])
  func refusedWrite(isQuick: Bool) throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    store.set {
      $0.isQuick = isQuick
      $0.granting = { _ throws(PinError) in throw .full }
    }
    #expect(errorCode { try region.setByte(9, 2) } == .outOfSpace)
    #expect(errorCode { try region.touch(2) } == .outOfSpace)
    #expect(try !region.filePageState(2).isDirty)
    #expect(try region.byte(2) == 3, "it can be read as before")
    try region.flush()
    #expect(store.written.isEmpty)
    store.set { $0.granting = { _ throws(PinError) in } }
    try region.setByte(9, 2)
    #expect(region.peek(2) == 9)
    try space.close()
    #expect(store.durableByte(2) == 9)
  }

  @Test("N2, N6: Before a page is written back its subscribers are told, and what they mark goes along")
  func tellsSubscribers() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    for page in 0..<8 { region.poke(100, page) }
    let order = Findings()
    let notifier = RecordingNotifier { range in
      if !store.written.isEmpty { order.note("told after writing") }
      if !region.table[0].contains(.open) { order.note("told after protecting") }
      return .done
    }
    let subscription = try region.subscribe(notifier)
    store.forgetCalls()
    try region.flush()
    #expect(order.all == [])
    #expect(notifier.calls == [.start(.writeback, 0..<8), .middle(.writeback, 0..<8), .end(.writeback, 0..<8)])
    subscription.remove()
    try space.close()
  }

  @Test("A page that is being written to its store does not change until that is done") func stableBytes() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 4)
    let region = try space.map(.file(store, fillAround: .exact), pages: 4)
    region.poke(10, 1)
    let inside = Shared()
    let gate = Shared()
    store.set {
      $0.writing = { _ throws(PinError) in
        inside.add()
        while gate.value == 0 { Kernel.pause(nanoseconds: 50_000) }
      }
    }
    let flusher = TestThread { try region.flush() }
    #expect(spin { inside.value == 1 })
    let done = Shared()
    let writer = TestThread {
      region.poke(11, 1)
      done.add()
    }
    #expect(spin { writer.isAsleep })
    #expect(region.peek(1) == 10 && done.value == 0, "readers go on, the writer waits")
    region.poke(12, 2)
    #expect(region.peek(2) == 12, "other pages can be written")
    gate.value = 1
    try flusher.join()
    try writer.join()
    #expect(store.byte(1) == 10)
    #expect(region.peek(1) == 11)
    #expect(try region.filePageState(1).isDirty)
    try region.flush()
    #expect(store.durableByte(1) == 11 && store.durableByte(2) == 12)
    try space.close()
  }

  @Test("What is written while a flush goes on is in this flush or dirty after it, never lost") func redirtied() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 4)
    let region = try space.map(.file(store, fillAround: .exact), pages: 4)
    region.poke(10, 1)
    region.poke(10, 3)
    // Between the collection and the page's turn somebody writes it again.
    let turns = Shared()
    TestHooks.set(.writingBack) { _ in turns.add() }
    defer { TestHooks.set(.writingBack, nil) }
    let first = Shared()
    let notifier = RecordingNotifier(end: { range in
      if range.event == .writeback, first.add() == 1 { first.value = 1 }
    })
    let subscription = try region.subscribe(notifier)
    defer { subscription.remove() }
    let writer = TestThread {
      while first.value == 0 { sched_yield() }; region.poke(11, 3)
    }
    try region.flush()
    try writer.join()
    let late = try region.filePageState(3).isDirty
    #expect(store.durableByte(1) == 10)
    #expect(late || store.durableByte(3) == 11)
    #expect(store.durableByte(3) >= 10)
    try space.close()
    #expect(store.durableByte(3) == 11)
  }

  @Test(
    "P3: Of many short runs each page is written once, as it is when its turn comes, and nothing is lost that comes before")
  func manyRuns() throws {
    let pages = 5000
    let space = try AddressSpace()
    let store = UnrulyStore(pages: pages)
    let region = try space.map(.file(store), pages: pages)
    let dirty = (0..<pages).filter { $0 % 4 != 0 }
    for page in dirty { region.poke(101, page) }
    // In the runs that are marked last, and were collected and protected like the others.
    let late = dirty.suffix(700).filter { $0 % 5 == 0 }
    store.set {
      $0.writing = { written throws(PinError) in
        if written.contains(1) { for page in late { region.poke(102, page) } }
      }
    }
    try region.flush()
    #expect(store.written.sorted() == dirty)
    #expect(dirty.allSatisfy { store.durableByte($0) == (late.contains($0) ? 102 : 101) })
    #expect(try dirty.allSatisfy { try region.filePageState($0) == cleanState })
    store.forgetCalls()
    try region.flush()
    #expect(store.written.isEmpty)
    try space.close()
  }

  private var cleanState: Region.FilePageState {
    .init(isPresent: true, isDirty: false, isUnderWriteback: false, isUnflushed: false)
  }
}
