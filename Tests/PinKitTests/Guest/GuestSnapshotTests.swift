import Guest
import Testing

@testable import PinKit

/// Snapshots of memory that a guest writes without pause.
@Suite("Guests and snapshots", .serialized, .needsKVM) struct GuestSnapshotTests {
  private func cut(_ combination: Combination, pages: Int, rounds: Int, options: SnapshotOptions = .init()) throws {
    try combination.subject.withGuestMemory(pages: pages) { region in
      var options = options
      options.mechanism = combination.mechanism
      let guest = GuestThread(in: region)
      guest.start()
      defer { try? guest.stop() }
      try #require(guest.advance(1))
      var open: [(snapshot: Snapshot, from: UInt64, to: UInt64)] = []
      for round in 0..<rounds {
        // What memory holds before was made before; what was made before the handle is in memory after, or something newer.
        let before = try guest.walk.words(in: region).max() ?? 0
        let snapshot = try region.snapshot(options)
        open.append((snapshot, before, try guest.walk.words(in: region).max() ?? 0))
        // While the guest writes, and when it has been everywhere since.
        for _ in 0..<2 {
          for (index, one) in open.enumerated() {
            let flaw = guest.walk.flaw(in: try guest.walk.words(of: one.snapshot), from: one.from, to: one.to)
            try #require(flaw == nil, "round \(round), snapshot \(index) of \(open.count)")
          }
          try #require(guest.goRound())
        }
        if open.count > 2 { open.remove(at: round % 2).snapshot.close() }
      }
      try #require(guest.advance(1))
      try guest.stop()
      #expect(guest.walk.flaw(in: try guest.walk.words(in: region), from: guest.progress, to: guest.horizon) == nil)
      // Nothing of what came after the last snapshots is in them.
      for one in open {
        #expect(guest.walk.flaw(in: try guest.walk.words(of: one.snapshot), from: one.from, to: one.to) == nil)
      }
    }
  }

  @Test("W6/N6: a snapshot is one moment of a guest that does not pause, and stays it", arguments: Combination.snapshots)
  func oneMoment(_ combination: Combination) throws {
    try cut(combination, pages: 64, rounds: combination.subject == .hugetlb ? 6 : 16)
  }

  @Test("W6: the same with a sweep beside the guest", arguments: Combination.snapshots)
  func withSweep(_ combination: Combination) throws {
    try cut(combination, pages: 256, rounds: combination.subject == .hugetlb ? 4 : 8, options: .init(sweep: true))
  }

  @Test(
    "W6/W4: what a guest wrote before the call is in the snapshot, what it writes after is not",
    arguments: Combination.snapshots)
  func order(_ combination: Combination) throws {
    try combination.subject.withGuestMemory(pages: 32) { region in
      var machine = try GuestMachine(in: region)
      for round in 1...8 {
        try machine.run(GuestStores(UInt64(round), to: region.guestPages, pageSize: region.pageSize))
        let snapshot = try region.snapshot(.init(mechanism: combination.mechanism))
        try machine.run(GuestStores(UInt64(round) << 32, to: region.guestPages, every: 2, pageSize: region.pageSize))
        for page in region.guestPages { #expect(try snapshot.word(page) == UInt64(round)) }
      }
    }
  }
}
