import CTestSupport
import Testing

@testable import PinKit

/// When the call in the middle comes.
@Suite("invalidateRange and what the page is at that moment") struct InvalidationMomentTests {
  /// Implements nothing else.
  private final class OnlyMiddle: MMUNotifier {
    let pages = Shared()
    private let body: @Sendable (InvalidationRange) -> Void
    init(_ body: @escaping @Sendable (InvalidationRange) -> Void) { self.body = body }
    func invalidateRange(_ range: InvalidationRange) {
      pages.add(range.pages.count)
      body(range)
    }
  }

  @Test(
    "N5: a discard of pages calls between the old bytes and none, whoever has their frames",
    arguments: Mechanisms.synchronous)
  func discard(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, mechanism)
    // Its own: nobody has the frame any more.
    region.poke(7, 6)
    let findings = Findings()
    let notifier = OnlyMiddle { range in
      for page in range.pages {
        let bytes = range.region.peek(page)
        if bytes != (page == 6 ? 7 : UInt8(page + 1)) { findings.note("page \(page) reads as \(bytes) when it is called") }
        // One that keeps its frame has it all the time.
        if page != 6, !range.region.table[page].contains(.cleared) { findings.note("page \(page) can be looked up") }
      }
    }
    let subscriptions = [try region.subscribe(notifier), try clone.subscribe(notifier)]
    try region.discard(4..<8)
    try clone.discard(10..<12)
    #expect(findings.all == [])
    #expect(notifier.pages.value == 6)
    #expect((4..<8).allSatisfy { region.peek($0) == 0 && !region.table[$0].contains(.cleared) })
    #expect((10..<12).allSatisfy { clone.peek($0) == 0 })
    #expect(clone.peek(4) == 5 && region.peek(10) == 11)
    for subscription in subscriptions { subscription.remove() }
    try space.close()
  }

  @Test("N5, S2: sealing calls when pages are frozen and their bytes are plain still", arguments: [false, true])
  func seal(_ isIdle: Bool) throws {
    let pages = 600
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: pages)
    try region.fill(with: 9)
    try region.setSealer(RecordingSealer(), SealingOptions(idleSeconds: isIdle ? 0.01 : nil))
    let findings = Findings()
    let ofThree = Shared()
    let notifier = OnlyMiddle { range in
      if range.pages.contains(3) { ofThree.add() }
      for page in range.pages {
        let byte = ct_load(UInt64(region.frames!.directAddress(of: page)))
        if byte != 9 { findings.note("page \(page) reads as \(byte) when it is called") }
        if (try? region.isSealed(page)) != false { findings.note("page \(page) is sealed when it is called") }
        if (try? region.frameState(page).counts.isFrozen) == false { findings.note("page \(page) is not frozen") }
      }
    }
    let subscription = try region.subscribe(notifier)
    if isIdle {
      try region.seal(3..<4)
      for turn in 2...4 {
        #expect(region.peek(3) == 9)
        try #require(spin(forAtMost: 300) { (try? region.isSealed(3)) == true })
        #expect(ofThree.value == turn)
      }
    } else {
      try region.seal(0..<pages)
      #expect(notifier.pages.value == pages)
      #expect((try? (0..<pages).allSatisfy { try region.isSealed($0) }) == true)
    }
    #expect(findings.all == [])
    subscription.remove()
    try space.close()
  }
}
