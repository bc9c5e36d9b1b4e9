import Synchronization
import Testing

@testable import PinKit

/// A secondary MMU and a direct mapping beside the primary one.
@Suite("Mirrors") struct MirrorTests {
  private static let mechanisms: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .mprotect]

  private func value(_ mirror: SecondaryMMU, _ page: Int) throws -> UInt64 {
    try unsafe mirror.withBytes(of: page, for: .reading) { unsafe $0.load(as: UInt64.self) }
  }
  private func set(_ mirror: SecondaryMMU, _ page: Int, _ value: UInt64) throws {
    try unsafe mirror.withBytes(of: page, for: .writing) { unsafe $0.storeBytes(of: value, as: UInt64.self) }
  }

  private func word(_ snapshot: Snapshot, _ page: Int) throws -> UInt64 {
    try unsafe snapshot.read(page).withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
  }

  @Test(
    "N1: a writable translation comes by a write fault: sharing is broken, trackers and snapshots know",
    arguments: mechanisms)
  func writes(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, mechanism)
    let mirror = try SecondaryMMU(clone)
    #expect(try value(mirror, 3) == 4)
    #expect(!mirror.isTranslated(3, for: .writing) && mirror.isTranslated(3))
    try set(mirror, 3, 50)
    #expect(try clone.load(fromByteOffset: 3 * 4096, as: UInt64.self) == 50)
    #expect(try region.load(fromByteOffset: 3 * 4096, as: UInt64.self) == 4)
    let tracker = try clone.trackWrites()
    #expect(!mirror.isTranslated(3))
    try set(mirror, 3, 51)
    try set(mirror, 3, 52)
    #expect(try tracker.collect().contains(3))
    let snapshot = try clone.snapshot()
    try set(mirror, 3, 53)
    #expect(try word(snapshot, 3) == 52)
    #expect(try tracker.collect().contains(3))
    #expect(try tracker.collect().isEmpty)
    try clone.protect(3..<4)
    let error = #expect(throws: PinError.self) { try set(mirror, 3, 54) }
    #expect(error?.code == .accessDenied)
    #expect(try value(mirror, 3) == 53)
    try clone.unmap()
    let gone = #expect(throws: PinError.self) { try value(mirror, 3) }
    #expect(gone?.code == .unmapped)
    snapshot.close()
    try space.close()
  }

  @Test("N2: what is written through a window is collected, and kept by snapshots", arguments: mechanisms)
  func windows(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, mechanism)
    // A page that has broken away lies elsewhere than its neighbours.
    try clone.store(UInt64(100), toByteOffset: 5 * 4096)
    let mapping = try DirectMapping(clone, pages: 4..<8)
    let first = try unsafe mapping.withBytes { UInt(bitPattern: $0.baseAddress!) }
    let read = { (page: Int) throws -> UInt64 in
      try unsafe mapping.withBytes { unsafe $0.load(fromByteOffset: (page - 4) * 4096, as: UInt64.self) }
    }
    let write = { (page: Int, value: UInt64) throws in
      try unsafe mapping.withBytes { unsafe $0.storeBytes(of: value, toByteOffset: (page - 4) * 4096, as: UInt64.self) }
    }
    #expect(try read(4) == 5 && read(5) == 100 && read(6) == 7 && read(7) == 8)
    try write(6, 60)
    #expect(try clone.load(fromByteOffset: 6 * 4096, as: UInt64.self) == 60)
    #expect(try region.load(fromByteOffset: 6 * 4096, as: UInt64.self) == 7)
    let tracker = try clone.trackWrites()
    #expect(!mapping.isEstablished)
    try write(6, 61)
    #expect(try tracker.collect().contains(6))
    #expect(try tracker.collect().isEmpty)
    let snapshot = try clone.snapshot()
    try write(7, 70)
    #expect(try word(snapshot, 7) == 8)
    let second = try clone.clone()
    try write(7, 71)
    #expect(try second.load(fromByteOffset: 7 * 4096, as: UInt64.self) == 70)
    #expect(try clone.load(fromByteOffset: 7 * 4096, as: UInt64.self) == 71)
    try clone.discard(7..<8)
    #expect(try read(7) == 0)
    #expect(try unsafe mapping.withBytes { UInt(bitPattern: $0.baseAddress!) } == first)
    mapping.close()
    let error = #expect(throws: PinError.self) { _ = try read(4) }
    #expect(error?.code == .stopped)
    snapshot.close()
    try space.close()
  }

  @Test("N9/N12: one that throws as the region goes does not hide that from those behind it")
  func throwsAtTheEnd() throws {
    struct Refusal: Error {}
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let first = RecordingNotifier { range in
      if range.event == .unmap { throw Refusal() }
      return .done
    }
    let subscription = try region.subscribe(first)
    let mirror = try SecondaryMMU(region)
    let mapping = try DirectMapping(region, pages: 2..<4)
    try set(mirror, 1, 7)
    try unsafe mapping.withBytes { unsafe $0.storeBytes(of: 8, as: Int.self) }
    let last = RecordingNotifier()
    let other = try region.subscribe(last)
    try region.unmap()
    #expect(!mirror.isTranslated(1) && !mapping.isEstablished)
    #expect(last.take(.start, .end, .release) == [.start(.unmap, 0..<8), .end(.unmap, 0..<8), .release])
    #expect(errorCode { try unsafe mapping.withBytes { _ in } } == .unmapped)
    for subscription in [subscription, other] { subscription.remove() }
    try space.close()
  }

  @Test("N2/W6: a mirror and a window that close beside a snapshot and a clone leave nothing that writes unseen")
  func closing() throws {
    let space = try AddressSpace.forTests()
    for round in 0..<60 {
      let region = try space.map(.pool, pages: 4)
      try region.store(UInt64(1), toByteOffset: 0)
      let mirror = try SecondaryMMU(region)
      let mapping = try DirectMapping(region, pages: 0..<1)
      try set(mirror, 0, 2)
      let isOver = Shared()
      let writer = TestThread {
        var value: UInt64 = 3
        while isOver.value == 0 {
          if round % 2 == 0 {
            _ = errorCode {
              try unsafe mirror.withBytes(of: 0, for: .writing) { unsafe $0.storeBytes(of: value, as: UInt64.self) }
            }
          } else {
            _ = errorCode { try unsafe mapping.withBytes { unsafe $0.storeBytes(of: value, as: UInt64.self) } }
          }
          value += 1
        }
      }
      let closer = TestThread {
        mirror.close()
        mapping.close()
      }
      let clone = try region.clone()
      let first = try clone.load(fromByteOffset: 0, as: UInt64.self)
      try closer.join()
      isOver.value = 1
      try writer.join()
      #expect(try clone.load(fromByteOffset: 0, as: UInt64.self) == first)
      #expect(!mapping.isEstablished && !mirror.isTranslated(0))
      try clone.unmap()
      try region.unmap()
    }
    try space.close()
  }
}
