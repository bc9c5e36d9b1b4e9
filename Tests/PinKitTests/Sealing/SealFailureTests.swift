import CTestSupport
import Testing

@testable import PinKit

/// A sealer that fails in the middle of many pages.
@Suite("A sealer that fails half-way") struct SealFailureTests {
  /// The first, one in the middle and the last of a batch of 256, and of the batch after it.
  private static let places = [10, 100, 265, 266, 300, 399]
  private static let pages = 10..<400

  @Test(
    "S2: sealing fails at any page with the sealer's error: those before are sealed, it and the others are as they were",
    arguments: places, [PinError.Code.keyGone, .limitReached])
  func sealing(_ place: Int, _ code: PinError.Code) throws {
    let it = try PatternedRegion(pages: 420)
    it.sealer.fail(at: place, code)
    #expect(errorCode { try it.region.seal(Self.pages) } == code)
    #expect(it.sealedPages == Array(Self.pages.lowerBound..<place))
    #expect(
      try (Self.pages.lowerBound..<place).allSatisfy {
        try it.region.rawByte($0, at: 4095) != PatternedRegion.byte($0, 4095)
      })
    #expect(!it.isHeld(0..<420))
    #expect(it.isIntact(place..<420), "whoever was not sealed can be read through a pointer")
    #expect(it.sealedPages == Array(Self.pages.lowerBound..<place), "and none of that opens or seals another")
    it.region.poke(99, place)
    #expect(it.region.peek(place) == 99)
    it.region.poke(PatternedRegion.byte(place, 0), place)
    #expect(errorCode { try it.region.seal(Self.pages) } == code, "again")
    #expect(it.sealedPages == Array(Self.pages.lowerBound..<place))

    it.sealer.recover()
    it.sealer.inner.forget()
    try it.region.seal(Self.pages)
    #expect(it.sealer.inner.steps == (place..<Self.pages.upperBound).map { .seal($0) }, "what was sealed stays as it is")
    #expect(it.sealedPages == Array(Self.pages))
    #expect(it.isIntact(0..<420))
    #expect(it.space.statistics.sealedPages == UInt64(Self.pages.count))
    try it.space.close()
  }

  @Test(
    "S1: opening fails at any page with a typed error: those before are open, it and the others are sealed, and open later",
    arguments: places + [63, 64, 127, 128], [PinError.Code.keyGone, .limitReached])
  func opening(_ place: Int, _ code: PinError.Code) throws {
    let it = try PatternedRegion(pages: 420)
    try it.region.seal(Self.pages)
    let sealedBytes = try Self.pages.map { try it.region.rawByte($0) }
    it.sealer.fail(at: place, code)
    for _ in 0..<2 { #expect(errorCode { try it.region.makeAccessible(Self.pages) } == .keyGone) }
    #expect(it.sealedPages == Array(place..<Self.pages.upperBound))
    #expect(
      try (place..<Self.pages.upperBound).allSatisfy {
        try it.region.rawByte($0) == sealedBytes[$0 - Self.pages.lowerBound]
      })
    #expect(it.isIntact(0..<place), "what was opened is whole")
    #expect(errorCode { _ = try it.region.byte(place) } == .keyGone)
    #expect(errorCode { _ = try it.region.pin(place..<place + 1) } == .keyGone)
    if place + 1 < Self.pages.upperBound { #expect(it.isIntact(place + 1..<place + 2), "the next one opens") }

    it.sealer.recover()
    try it.region.makeAccessible(Self.pages)
    #expect(it.sealedPages == [] && it.isIntact(0..<420) && !it.isHeld(0..<420))
    #expect(it.space.statistics.poisonedPages == 0)
    try it.region.seal(Self.pages)
    #expect(it.isIntact(0..<420))
    try it.space.close()
  }

  @Test(
    "A page that was tampered with stops neither those before it nor, called by name, those behind it", arguments: places)
  func tampering(_ place: Int) throws {
    let it = try PatternedRegion(pages: 420)
    try it.region.seal(Self.pages)
    try it.region.tamper(place, at: 4000)
    #expect(errorCode { try it.region.makeAccessible(Self.pages) } == .tampered)
    #expect(it.sealedPages == Array(place..<Self.pages.upperBound))
    if place + 1 < Self.pages.upperBound { try it.region.makeAccessible(place + 1..<Self.pages.upperBound) }
    #expect(it.sealedPages == [place])
    #expect(it.isIntact(0..<place) && it.isIntact(place + 1..<420))
    #expect(it.space.statistics.poisonedPages == 1)
    try it.region.seal(Self.pages)
    #expect(it.sealedPages == Array(Self.pages))
    #expect(errorCode { try it.region.makeAccessible(place..<place + 1) } == .tampered)
    try it.space.close()
  }
}
