import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// The moments between the steps of cleaning a page.
@Suite("The moments in which a page of a store is cleaned") struct FileCleanOrderTests {
  @Test("N3: a page that is taken for its store is clean at no moment before it is there, nor if the store fails")
  func neverClean() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      let store = UnrulyStore(pages: 200)
      let region = try space.map(.file(store, fillAround: .exact), pages: 200)
      let file = region.attachments.find(FilePages.self)!
      // In different words of the record.
      let written = [2, 3, 70, 199]
      let looks = Shared()
      let findings = Findings()
      TestHooks.set(.draining) { first in
        looks.add()
        // All that were written: a run is handed over when the next one was found.
        for page in written where file.isClean(page) { findings.note("page \(page) is clean when \(first) was taken") }
      }
      for isBroken in [true, false] {
        for page in written { region.poke(77, page) }
        store.set { $0.writing = { _ throws(PinError) in if isBroken { throw .broken } } }
        check(errorCode { try region.flush() } == (isBroken ? .inputOutput : nil), "the flush")
        for page in written { check(file.isClean(page) == !isBroken, "page \(page) after the flush") }
      }
      TestHooks.set(.draining, nil)
      check(looks.value >= 6, "the pages were taken \(looks.value) times")
      check(findings.all, is: [])
      try space.close()
    }
  }

  @Test("P3: a page that is marked while others are taken is dirty again if the store cannot make it durable")
  func markedMeanwhile() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let space = try AddressSpace.forTests()
      let store = UnrulyStore(pages: 200)
      let region = try space.map(.file(store, fillAround: .exact), pages: 200)
      let file = region.attachments.find(FilePages.self)!
      for page in [2, 70, 140, 150] { _ = region.peek(page) }
      region.poke(77, 2)
      region.poke(77, 70)
      region.poke(77, 140)
      TestHooks.set(.draining) { first in
        // Page 70 is taken by now, and the word of page 140 is not.
        if first == 2 { file.dirty.insert(150..<151) }
      }
      store.set { $0.flushing = { () throws(PinError) in throw .broken } }
      check(errorCode { try region.flush() }, is: .inputOutput)
      TestHooks.set(.draining, nil)
      check(store.written, is: [2, 70, 140, 150])
      for page in [2, 70, 140, 150] { check(!file.isClean(page), "page \(page) is clean, and not durable") }
      store.set { $0.flushing = {} }
      try region.flush()
      for page in [2, 70, 140, 150] { check(file.isClean(page), "page \(page)") }
      try space.close()
    }
  }

  @Test("P3: a page that is pinned for writing after it was collected, and protected again, is written from a stable copy")
  func pinnedAfterCollection() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      // Behind the first 4096 pages: its turn comes when those are written.
      let (pages, last) = (4200, 4150)
      let space = try AddressSpace.forTests()
      let store = UnrulyStore(pages: pages)
      let region = try space.map(.file(store), pages: pages)
      let tracker = try region.trackWrites(.handlerThread)
      for page in 0..<pages { region.poke(0xb1, page) }
      let held = Mutex<HeldPin?>(nil)
      let address = Shared()
      let turns = Shared()
      let findings = Findings()
      TestHooks.set(.writingBack) { first in
        guard first == 0, turns.add() == 1 else { return }
        do {
          let pin = try region.pin(last..<last + 1, .write)
          address.value = Int(pin.start)
          let kept = HeldPin(pin)
          held.withLock { $0 = kept }
          // Protects it again.
          if try !tracker.collect().contains(last) { findings.note("the pin is in no set") }
          if region.table[last].contains(.open) { findings.note("the page is open") }
        } catch { findings.note("\(error)") }
      }
      let writes = Shared()
      store.set {
        $0.writing = { written throws(PinError) in
          guard written.contains(last) else { return }
          writes.add()
          // The store has the memory, and has not looked at it yet.
          ct_store(UInt64(address.value), 0xb2)
        }
      }
      try region.flush()
      TestHooks.set(.writingBack, nil)
      check(findings.all, is: [])
      check(turns.value >= 1 && writes.value == 1, "\(turns.value) turns, \(writes.value) writes")
      check(store.byte(last), is: 0xb1, "the store was given bytes that change")
      try check(region.filePageState(last).isDirty, "a pinned page is reported clean")
      held.withLock { $0.take()?.drop() }
      try region.flush()
      check(store.durableByte(last), is: 0xb2)
      try tracker.stop()
      try space.close()
    }
  }
}
