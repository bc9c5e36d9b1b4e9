import Guest
import Testing

@testable import PinKit

/// Memory that changes under a guest that writes it.
@Suite("Guests and changes", .serialized, .needsKVM) struct GuestChangeTests {
  @Test("W5/N5: a discard wipes out what was there, and nothing that came after", arguments: Guarded.own)
  func discards(_ guarded: Guarded) throws {
    let seed = Seed.base
    var random = SeededRandom(seed: seed)
    try guarded.subject.withGuestMemory(pages: 64) { region in
      let guest = GuestThread(in: region)
      let tracker = try guarded.mechanism.map { try region.trackWrites($0) }
      guest.start()
      defer { try? guest.stop() }
      // By page: the last store that can have been made when its latest discard had returned.
      var wiped = [UInt64](repeating: 0, count: region.pageCount)
      var copy = try guest.walk.words(in: region)
      func collect() throws {
        guard let tracker else { return }
        let dirty = try tracker.collect()
        let words = try guest.walk.words(in: region)
        for word in words.indices where dirty.contains(guest.walk.page(of: word)) { copy[word] = words[word] }
      }
      for _ in 0..<200 {
        let page = Int.random(in: guest.walk.pages, using: &random)
        let end = min(guest.walk.pages.upperBound, page + Int.random(in: 1...4, using: &random))
        try region.discard(page..<end)
        for page in page..<end { wiped[page] = guest.horizon }
        if random.chance(25) { try collect() }
      }
      try guest.stop()
      for page in guest.walk.pages where random.chance(10) {
        try region.discard(page..<page + 1)
        wiped[page] = guest.horizon
      }
      let latest = guest.progress
      try #require(latest == guest.horizon)
      let words = try guest.walk.words(in: region)
      for (word, held) in words.enumerated() {
        let expected = guest.walk.expected(word, after: latest)
        let isWiped = held == 0 && expected <= wiped[guest.walk.page(of: word)]
        #expect(held == expected || isWiped, "word \(word) holds \(held), last written was \(expected), seed \(seed)")
      }
      try collect()
      if tracker != nil { #expect(copy == words, "seed \(seed)") }
    }
  }

  @Test(
    "W1/N2: once a page is read-only no store of the guest lands, and none is lost when it may write again",
    arguments: Guarded.own)
  func protects(_ guarded: Guarded) throws {
    var random = SeededRandom(seed: 11)
    try guarded.subject.withGuestMemory(pages: 64) { region in
      let guest = GuestThread(in: region)
      let tracker = try guarded.mechanism.map { try region.trackWrites($0) }
      guest.start()
      defer { try? guest.stop() }
      try #require(guest.advance(1))
      for _ in 0..<20 {
        let first = Int.random(in: guest.walk.pages, using: &random)
        let pages = first..<min(guest.walk.pages.upperBound, first + 3)
        func held() throws -> [UInt64] {
          let words = try guest.walk.words(in: region)
          return words.indices.filter { pages.contains(guest.walk.page(of: $0)) }.map { words[$0] }
        }
        let attempts = guest.forbiddenStores
        try region.protect(pages)
        let before = try held()
        _ = try tracker?.collect()
        // It comes to the page and stops there.
        try #require(spin { guest.forbiddenStores > attempts + 1 || guest.failure != nil })
        #expect(try held() == before)
        if let tracker { #expect(try tracker.collect().isDisjoint(with: pages)) }
        try region.protect(pages, to: .readWrite)
        try #require(guest.advance(1))
      }
      try guest.stop()
      #expect(guest.walk.flaw(in: try guest.walk.words(in: region), from: guest.progress, to: guest.horizon) == nil)
    }
  }

  @Test("N1: a guest that may not write is told so, and goes on from that store", arguments: Guarded.own)
  func forbidden(_ guarded: Guarded) throws {
    try guarded.subject.withGuestMemory(pages: 16) { region in
      let tracker = try guarded.mechanism.map { try region.trackWrites($0) }
      var machine = try GuestMachine(in: region)
      _ = try tracker?.collect()
      let pages = region.guestPages
      let forbidden = pages.lowerBound + 6
      for access in [PageAccess.readOnly, .none] {
        try region.protect(forbidden..<forbidden + 1, to: access)
        var error: PinError?
        do throws(PinError) { try machine.run(GuestStores(5, to: pages, pageSize: 4096)) } catch let caught {
          error = caught
        }
        #expect(error?.code == .accessDenied)
        #expect(error?.range == (try region.addresses(of: forbidden..<forbidden + 1)))
        #expect(try machine.remaining == 10)
        if let tracker { #expect(try tracker.collect().runs == [pages.lowerBound..<forbidden]) }
        try region.protect(forbidden..<forbidden + 1, to: .readWrite)
        #expect(try region.load(fromByteOffset: forbidden * 4096, as: UInt64.self) == 0)
        try machine.resume()
        #expect(try machine.remaining == 0)
        if let tracker { #expect(try tracker.collect().runs == [forbidden..<pages.upperBound]) }
        #expect(try region.firstWords()[pages].allSatisfy { $0 == 5 })
        try region.store(UInt64(0), toByteOffset: forbidden * 4096)
        _ = try tracker?.collect()
      }
    }
  }

  @Test("Stores outside the memory, or in the machine's own pages, are refused") func bounds() throws {
    try Subject.anonymous.withGuestMemory(pages: 4) { region in
      var machine = try GuestMachine(in: region)
      for pages in [3..<5, 0..<8, 4..<9, 8..<8] {
        #expect(code { try machine.run(GuestStores(1, to: pages, pageSize: 4096)) } == .outOfBounds, "\(pages)")
      }
      let beyond = GuestStores(base: 16384, offset: 0, stride: 8, window: 32768, count: 1, value: 1)
      #expect(code { try machine.run(beyond) } == .outOfBounds)
      try machine.run(GuestStores(1, to: 4..<8, pageSize: 4096))
      try region.unmap()
      #expect(code { try machine.run(GuestStores(1, to: 4..<8, pageSize: 4096)) } == .unmapped)
    }
    let space = try AddressSpace.forTests()
    #expect(code { _ = try GuestMachine(in: try space.map(pages: 4)) } == .invalidArgument)
    try space.close()
  }
}
