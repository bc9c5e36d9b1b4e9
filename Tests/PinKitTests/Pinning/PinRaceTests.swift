import Glibc
import Testing

@testable import PinKit

/// Pins beside everything that looks at them, against what must be.
@Suite("Races of pins", .serialized) struct PinRaceTests {
  private static let pageCount = 16
  private static let rounds = 40

  @Test("P4, P6, W4, W6: pins × writers × collections × snapshots × clones × discards × unmapping", arguments: 0..<200)
  func everything(_ seed: Int) throws {
    let mechanism = Mechanisms.synchronous[seed % 3]
    let backing: Backing = seed % 4 == 3 ? .anonymous : .pool
    let space = try AddressSpace.forTests()
    let region = try space.map(backing, pages: Self.pageCount)
    let tracker = try region.trackWrites(mechanism)
    let findings = Findings()
    let isOver = Shared()
    let pinners = (0..<2).map { index in
      TestThread {
        do { try Self.pin(region, tracker, index, seed, findings) } catch let error as PinError where error.code == .unmapped
        {}
        isOver.add()
      }
    }
    let dropper = TestThread {
      var random = SeededRandom(seed: Seed.of(seed + 1000))
      while isOver.value < 2 {
        let page = Int.random(in: 0..<Self.pageCount, using: &random)
        do {
          // Pages that nobody writes: who pins them sees zeros, or what the pin itself wrote.
          if page % 4 == 3 { try region.discard(page..<page + 1) }
        } catch let error as PinError where error.code == .pinned || error.code == .unmapped {}
      }
    }
    var random = SeededRandom(seed: Seed.of(seed + 2000))
    while isOver.value < 2 {
      switch Int.random(in: 0..<3, using: &random) {
      case 0: try Self.snapshot(region, findings)
      case 1 where backing == .pool: try Self.clone(region, findings)
      default: _ = try tracker.collect()
      }
      if seed % 5 == 4, isOver.value < 2, random.chance(10) { break }
    }
    var code: PinError.Code? = .pinned
    while code == .pinned { code = errorCode { try region.unmap() } }
    #expect(code == nil)
    for thread in pinners + [dropper] { try thread.join() }
    #expect((0..<Self.pageCount).allSatisfy { !region.table[$0].isPinned })
    #expect(findings.all.isEmpty, "\(findings.all.prefix(5))")
    try space.close()
    if backing == .pool { #expect(try space.framePool().usage.countedFrames == 0) }
  }

  /// Pins pages of its own for writing and others for reading; pages of four: one of each thread, one for whoever discards, one that is
  /// written by the processor only.
  private static func pin(
    _ region: Region, _ tracker: WriteTracker, _ index: Int, _ seed: Int, _ findings: Findings
  ) throws {
    var random = SeededRandom(seed: Seed.of(seed * 2 + index))
    for round in 1...rounds {
      let page = Int.random(in: 0..<pageCount / 4, using: &random) * 4 + index
      let value = UInt64(round * 2 + index)
      let pin = try region.pin(page..<page + 1, .write)
      // By the pin, and by the processor, and each sees the other.
      try unsafe pin.withUnsafeMutableBytes { unsafe $0.storeBytes(of: value, as: UInt64.self) }
      let seen: UInt64 = try region.load(fromByteOffset: page * 4096)
      if seen != value { findings.note("\(value) went through a pin to page \(page), whose owner reads \(seen)") }
      try region.store(value + 1000, toByteOffset: page * 4096)
      let read = unsafe pin.withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
      if read != value + 1000 { findings.note("\(value + 1000) was stored to page \(page), and its pin reads \(read)") }
      // Both words of a page are written under one pin: nobody else's snapshot or clone may tell them apart for long.
      if try !region.mayBePinned(page) { findings.note("page \(page) is pinned, and says that it is not") }
      pin.unpin()
      Tally.add(.operations, 2)
      Tally.add(.checks, 2)
      let other = Int.random(in: 0..<pageCount / 4, using: &random) * 4 + 3
      let reading = try region.pin(other..<other + 1, random.chance(50) ? .write : [])
      if reading.options.contains(.write) {
        try unsafe reading.withUnsafeMutableBytes {
          unsafe $0.storeBytes(of: value, toByteOffset: 8 * (index + 1), as: UInt64.self)
        }
        let kept = unsafe reading.withUnsafeBytes { unsafe $0.load(fromByteOffset: 8 * (index + 1), as: UInt64.self) }
        let own: UInt64 = try region.load(fromByteOffset: other * 4096 + 8 * (index + 1))
        Tally.add(.operations)
        Tally.add(.checks, 2)
        if kept != value || own != value {
          findings.note("page \(other) was dropped under its pin: \(kept), \(own), not \(value)")
        }
      }
    }
  }

  /// Two looks at a snapshot are the same.
  private static func snapshot(_ region: Region, _ findings: Findings) throws {
    let snapshot = try region.snapshot()
    defer { snapshot.close() }
    func look() throws -> [UInt8] {
      var bytes = [UInt8](repeating: 0, count: pageCount * 4096)
      try unsafe bytes.withUnsafeMutableBytes { try unsafe snapshot.copy(0..<pageCount, into: $0) }
      return bytes
    }
    let first = try look()
    sched_yield()
    Tally.add(.checks, pageCount)
    if try look() != first { findings.note("W6: a snapshot has changed") }
  }

  private static func clone(_ region: Region, _ findings: Findings) throws {
    let clone = try region.clone()
    let first = try (0..<pageCount).map { try clone.load(fromByteOffset: $0 * 4096, as: UInt64.self) }
    sched_yield()
    let second = try (0..<pageCount).map { try clone.load(fromByteOffset: $0 * 4096, as: UInt64.self) }
    Tally.add(.checks, pageCount)
    if first != second { findings.note("W5: a clone has changed") }
    try clone.unmap()
  }

  @Test("P6: nothing that is written through pins is lost between collections", arguments: Mechanisms.all)
  func collections(_ mechanism: WriteTracking.Mechanism) throws {
    for backing in [Backing.pool, .anonymous] {
      let space = try AddressSpace.forTests()
      let region = try space.map(backing, pages: Self.pageCount)
      let tracker = try region.trackWrites(mechanism)
      let isOver = Shared()
      let findings = Findings()
      let writer = TestThread {
        for value in 1...3000 {
          let page = value % Self.pageCount
          let pin = try region.pin(page..<page + 1, .write)
          try unsafe pin.withUnsafeMutableBytes { unsafe $0.storeBytes(of: UInt64(value), as: UInt64.self) }
        }
        isOver.value = 1
      }
      // What is dirty is copied after it was collected: in the end the copy is the region.
      var shadow = [UInt64](repeating: 0, count: Self.pageCount)
      func collect() throws {
        for page in try tracker.collect().pages { shadow[page] = try region.load(fromByteOffset: page * 4096) }
      }
      while isOver.value == 0 { try collect() }
      try writer.join()
      try collect()
      #expect(shadow == (try (0..<Self.pageCount).map { try region.load(fromByteOffset: $0 * 4096) }))
      #expect(findings.all.isEmpty)
      try space.close()
    }
  }
}
