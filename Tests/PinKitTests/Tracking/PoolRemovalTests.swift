import Synchronization
import Testing

@testable import PinKit

/// Removal behind PinKit's back of pages that PinKit takes out of the mapping itself: on huge frames, and where pages may be sealed.
@Suite("Pages of the pool that others take away", .serialized) struct PoolRemovalTests {
  enum Kind: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case huge, sealable
    var testDescription: String { rawValue }
  }

  struct Case: Sendable, CustomTestStringConvertible {
    let kind: Kind
    let mechanism: WriteTracking.Mechanism
    var testDescription: String { "\(kind), \(mechanism)" }
    static let all = Kind.allCases.flatMap { kind in
      // Sealed pages trap in handler threads.
      (kind == .huge ? [WriteTracking.Mechanism.handlerThread, .inPlace] : [.handlerThread]).map {
        Case(kind: kind, mechanism: $0)
      }
    }
  }

  private static let pages = 1024

  private func with(_ kind: Kind, _ body: (Region) throws -> Void) throws {
    try Test.skip(if: kind == .huge ? HugePageSetting.obstacle : nil)
    let space = try AddressSpace.forTests()
    if kind == .sealable {
      let region = try space.map(.pool, pages: Self.pages)
      try region.setSealer(RecordingSealer())
      for page in 0..<Self.pages { try region.store(UInt64(7), toByteOffset: page * 4096) }
      try body(region)
    } else {
      try HugePageSetting.allowed {
        let region = try space.map(.pool(hugePages: .prefer), pages: Self.pages)
        for page in 0..<Self.pages { try region.store(UInt64(7), toByteOffset: page * 4096) }
        try body(region)
      }
    }
    try space.close()
  }

  @Test(
    "K5/W6: a snapshot that was owed pages which others removed is given up, and hands out no zeros", arguments: Case.all)
  func snapshots(_ removal: Case) throws {
    try with(removal.kind) { region in
      let snapshot = try region.snapshot(.init(mechanism: removal.mechanism))
      #expect(try snapshot.read(5)[0] == 7)
      try Memory.advise(region.addresses(of: 600..<602), .remove)
      #expect(code { _ = try snapshot.read(600) } == .snapshotLost)
      #expect(snapshot.failure?.code == .snapshotLost)
      snapshot.close()
      // The next one has what is there now.
      let next = try region.snapshot()
      for page in 0..<Self.pages { try region.store(UInt64(8), toByteOffset: page * 4096) }
      #expect(try next.read(600)[0] == 0 && next.read(599)[0] == 7 && next.failure == nil)
    }
  }

  @Test("W5: the pages are in the next set", arguments: Case.all)
  func sets(_ removal: Case) throws {
    try with(removal.kind) { region in
      let tracker = try region.trackWrites(removal.mechanism)
      #expect(try tracker.collect().isEmpty)
      try Memory.advise(region.addresses(of: 600..<602), .remove)
      #expect(try tracker.collect().runs == [600..<602])
      #expect(try tracker.collect().isEmpty)
      try tracker.stop()
    }
  }

  @Test("What PinKit takes out of the mapping itself is no news: sets stay exact and snapshots whole", arguments: Case.all)
  func ownDrops(_ removal: Case) throws {
    try with(removal.kind) { region in
      let tracker = try region.trackWrites(removal.mechanism)
      let snapshot = try region.snapshot()
      for round in 1...20 {
        let page = round * 40
        try region.store(UInt64(round), toByteOffset: page * 4096)
        if removal.kind == .sealable { try? region.seal(page + 1..<page + 30) }
        #expect(try tracker.collect().runs == [page..<page + 1], "round \(round)")
      }
      #expect(try snapshot.read(40)[0] == 7 && snapshot.failure == nil)
      snapshot.close()
      if removal.kind == .sealable {
        try region.seal(0..<Self.pages)
        #expect(try tracker.collect().isEmpty)
        #expect(try region.load(fromByteOffset: 40 * 4096, as: UInt64.self) == 1)
      }
      try tracker.stop()
    }
  }

  @Test("K2: pages are sealed while others remove, write and fault, and nobody waits for ever")
  func beside() throws {
    try with(.sealable) { region in
      let isOver = Atomic(false)
      let writer = HostThread { [region] in
        var turn = 0
        while !isOver.load(ordering: .acquiring) {
          turn += 1
          try? region.store(UInt64(turn), toByteOffset: turn * 37 % Self.pages * 4096)
        }
      }
      let remover = HostThread { [region] in
        while !isOver.load(ordering: .acquiring) { try? Memory.advise(region.addresses(of: 900..<910), .remove) }
      }
      for _ in 0..<200 { try? region.seal(0..<512) }
      isOver.store(true, ordering: .releasing)
      writer.join()
      remover.join()
    }
  }
}
