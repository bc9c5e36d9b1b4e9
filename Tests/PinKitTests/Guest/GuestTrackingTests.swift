import Guest
import Synchronization
import Testing

@testable import PinKit

/// Trackers of memory that a guest writes, through translations that only the kernel's notifiers take away.
@Suite("Guests and trackers", .serialized, .needsKVM) struct GuestTrackingTests {
  @Test("K1/N6: every set is exactly the pages that the guest wrote", arguments: Combination.all)
  func exactSets(_ combination: Combination) throws {
    let seed = Seed.base
    var random = SeededRandom(seed: seed)
    try combination.subject.withGuestMemory(pages: 96) { region in
      var machine = try GuestMachine(in: region)
      let tracker = try region.trackWrites(combination.mechanism)
      var earlier = Set(try tracker.collect().pages)
      var held = try region.firstWords()
      for round in 1...40 {
        var written: Set<Int> = []
        for turn in 0..<Int.random(in: 0...5, using: &random) {
          let first = Int.random(in: region.guestPages, using: &random)
          let end = Int.random(in: first + 1...region.pageCount, using: &random)
          let step = Int.random(in: 1...7, using: &random)
          let value = UInt64(round * 10 + turn)
          try machine.run(GuestStores(value, to: first..<end, every: step, pageSize: region.pageSize))
          for page in stride(from: first, to: end, by: step) {
            written.insert(page)
            held[page] = value
          }
        }
        let found = Set(try tracker.collect().pages)
        #expect(written.isSubset(of: found), "round \(round), seed \(seed)")
        #expect(
          found.subtracting(written).isSubset(of: combination.mayRepeat ? earlier : []), "round \(round), seed \(seed)")
        earlier.formUnion(found)
      }
      // Reading leaves pages clean.
      #expect(try region.firstWords() == held)
      #expect(Set(try tracker.collect().pages).isSubset(of: combination.mayRepeat ? earlier : []))
    }
  }

  @Test(
    "N6: a collection takes the guest's translations away, and they last until then",
    arguments: Guarded.own.filter { $0.mechanism != nil })
  func translations(_ guarded: Guarded) throws {
    let mechanism = try #require(guarded.mechanism)
    try guarded.subject.withGuestMemory(pages: 128) { region in
      var machine = try GuestMachine(in: region)
      let tracker = try region.trackWrites(mechanism)
      try Test.skip(if: machine.translationsMade == nil ? "KVM does not count translations here" : nil)
      func made(writing value: UInt64) throws -> Int {
        let before = machine.translationsMade ?? 0
        try machine.run(GuestStores(value, to: region.guestPages, pageSize: region.pageSize))
        return (machine.translationsMade ?? 0) - before
      }
      _ = try made(writing: 1)
      for round in 2..<6 {
        #expect(try tracker.collect().runs == [region.guestPages])
        #expect(try made(writing: UInt64(round)) >= 128)
        // The kernel takes some away for reasons of its own: where it moves a page, as beside a compactor.
        #expect(try (0..<1000).contains { try made(writing: UInt64(round + 10 + $0)) == 0 })
      }
    }
  }

  @Test(
    "N1: where the kernel may not take the fault for the guest, KVM_RUN is refused once a page, and the fault taken first",
    arguments: Combination.all.filter { [.anonymous, .pool].contains($0.subject) })
  func refusals(_ combination: Combination) throws {
    try combination.subject.withGuestMemory(pages: 32) { region in
      var machine = try GuestMachine(in: region)
      try region.fill(with: 3, pages: region.guestPages)
      let seen = PageNumbers(count: region.pageCount)
      let old = Shared()
      let start = region.addresses.start
      let note: @Sendable (FirstWrite) -> Void = { write in
        seen.increment(write.page)
        let byte = unsafe UnsafePointer<UInt8>(bitPattern: start + UInt(write.page * 4096))!
        if unsafe byte.pointee == 3 { old.add() }
      }
      let isSynchronous = combination.mechanism != .asynchronous
      let tracker = try region.trackWrites(combination.mechanism, onFirstWrite: isSynchronous ? note : nil)
      try machine.run(GuestStores(9, to: region.guestPages, pageSize: region.pageSize))
      let isRefused = [.inPlace, .mprotect].contains(combination.mechanism)
      let refusals = machine.refusals
      #expect(refusals == (isRefused ? 32 : 0))
      #expect(try tracker.collect().runs == [region.guestPages])
      guard isSynchronous else { return }
      // Called once for each page, before the guest's store landed.
      #expect(seen.snapshot == (0..<region.pageCount).map { region.guestPages.contains($0) ? 1 : 0 })
      #expect(old.value == 32)
    }
  }

  @Test("W5: no store of a guest that does not pause is missed, beside collections", arguments: Combination.all)
  func lostWrites(_ combination: Combination) throws {
    try combination.subject.withGuestMemory(pages: 256) { region in
      let guest = GuestThread(in: region)
      let tracker = try region.trackWrites(combination.mechanism)
      var copy = try guest.walk.words(in: region)
      var found = DirtySet(pageCount: region.pageCount)
      func collect() throws {
        let dirty = try tracker.collect()
        found = found.union(dirty)
        let words = try guest.walk.words(in: region)
        for word in words.indices where dirty.contains(guest.walk.page(of: word)) { copy[word] = words[word] }
      }
      guest.start()
      defer { try? guest.stop() }
      for round in 0..<60 {
        try collect()
        if round % 10 == 0 { try #require(guest.goRound()) }
      }
      try #require(guest.goRound())
      try guest.stop()
      try collect()
      // Whatever is not in the copy was written by a store that no set names.
      #expect(guest.walk.flaw(in: copy, from: guest.progress, to: guest.horizon) == nil)
      #expect(guest.walk.pages.allSatisfy(found.contains))
      #expect(try tracker.collect().isEmpty || combination.mayRepeat)
    }
  }

  @Test("K1: on huge pages a set names small ones", arguments: Mechanisms.all)
  func hugePages(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .prefer), pages: 2048)
    try region.fill(with: 1)
    var machine = try GuestMachine(in: region)
    try machine.run(GuestStores(2, to: region.guestPages, pageSize: 4096))
    let tracker = try region.trackWrites(mechanism)
    try machine.run(GuestStores(3, to: 700..<702, pageSize: 4096))
    #expect(try tracker.collect().runs == [700..<702])
    try machine.run(GuestStores(4, to: 5..<2048, every: 512, pageSize: 4096))
    #expect(Array(try tracker.collect().pages) == [5, 517, 1029, 1541])
    try space.close()
  }
}

extension Region {
  func fill(with byte: UInt8, pages: Range<Int>) throws {
    for page in pages { try store(byte, toByteOffset: page * pageSize) }
  }
}
