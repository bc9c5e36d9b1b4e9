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
}
