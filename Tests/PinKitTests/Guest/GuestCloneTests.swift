import Guest
import Testing

@testable import PinKit

/// Guests whose memory shares its frames with other regions.
@Suite("Guests and clones", .serialized, .needsKVM) struct GuestCloneTests {
  private func with(_ body: (Region) throws -> Void) throws { try Subject.pool.withGuestMemory(pages: 64, body) }

  @Test(
    "W5/N5: what a guest writes in a clone, the original does not see, nor the other way", arguments: Mechanisms.synchronous)
  func isolation(_ mechanism: WriteTracking.Mechanism) throws {
    try with { region in
      let pages = region.guestPages
      var original = try GuestMachine(in: region)
      try original.run(GuestStores(1, to: pages, pageSize: 4096))
      let clone = try region.clone(mechanism: mechanism)
      var copy = try GuestMachine(in: clone)
      let before = try region.firstWords()
      try copy.run(GuestStores(2, to: pages.lowerBound + 1..<pages.upperBound, every: 3, pageSize: 4096))
      #expect(try region.firstWords() == before)
      // Through the translations that it had before its frames were shared.
      try original.run(GuestStores(3, to: pages.lowerBound + 2..<pages.upperBound, every: 3, pageSize: 4096))
      for page in pages {
        let turn = (page - pages.lowerBound) % 3
        #expect(try clone.load(fromByteOffset: page * 4096, as: UInt64.self) == (turn == 1 ? 2 : 1), "page \(page)")
        #expect(try region.load(fromByteOffset: page * 4096, as: UInt64.self) == (turn == 2 ? 3 : 1), "page \(page)")
      }
      try clone.unmap()
    }
  }

  @Test(
    "W5/N5: two guests that do not pause, one on either side, each have their own bytes", arguments: Mechanisms.synchronous)
  func bothSides(_ mechanism: WriteTracking.Mechanism) throws {
    try with { region in
      for hop in [1, 3, 77] {
        let clone = try region.clone(mechanism: mechanism)
        let pages = GuestWalk(in: region).pages
        let one = GuestThread(in: region, walk: GuestWalk(pages, pageSize: 4096, hop: hop))
        let other = GuestThread(in: clone, walk: GuestWalk(pages, pageSize: 4096, hop: hop + 2))
        one.start()
        other.start()
        defer { try? other.stop() }
        // Far enough that nothing is left of what the frames held when they were shared.
        let isRunning = one.advance(20_000) && other.advance(20_000)
        try one.stop()
        try other.stop()
        #expect(isRunning)
        #expect(one.walk.flaw(in: try one.walk.words(in: region), from: one.progress, to: one.horizon) == nil)
        #expect(other.walk.flaw(in: try other.walk.words(in: clone), from: other.progress, to: other.horizon) == nil)
        try clone.unmap()
      }
    }
  }

  @Test("W5/W6: clones that are made beside a guest hold one moment", arguments: Mechanisms.synchronous)
  func clonesOfOneMoment(_ mechanism: WriteTracking.Mechanism) throws {
    try with { region in
      let guest = GuestThread(in: region)
      guest.start()
      defer { try? guest.stop() }
      try #require(guest.advance(1))
      for round in 0..<40 {
        let before = try guest.walk.words(in: region).max() ?? 0
        let clone = try region.clone(mechanism: mechanism)
        let after = try guest.walk.words(in: region).max() ?? 0
        for _ in 0..<2 {
          #expect(guest.walk.flaw(in: try guest.walk.words(in: clone), from: before, to: after) == nil, "round \(round)")
          try #require(guest.goRound())
        }
        try clone.unmap()
      }
    }
  }
}
