import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// N10 of operations that take their pages in parts.
@Suite("Operations over very many pages and their subscribers") struct NotifierRangeTests {
  private static let pages = 2000

  private func sealed() throws -> (AddressSpace, Region) {
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: Self.pages)
    try region.setSealer(RecordingSealer())
    try region.fill(with: 1)
    return (space, region)
  }

  @Test("N10: sealing is one start and one end, however many pages it is, and each page is invalidated in between")
  func seal() throws {
    let (space, region) = try sealed()
    defer { try? space.close() }
    let notifier = RecordingNotifier()
    let subscription = try region.subscribe(notifier, to: 0..<Self.pages)
    try region.seal(100..<1900)
    let calls = notifier.take()
    #expect(calls.filter { $0.kind != .middle } == [.start(.seal, 100..<1900), .end(.seal, 100..<1900)])
    #expect(calls.first?.kind == .start && calls.last?.kind == .end)
    #expect(Set(calls.filter { $0.kind == .middle }.flatMap(\.pages)) == Set(100..<1900))
    try region.seal(100..<1900)
    #expect(notifier.take() == [], "nothing is left to be sealed")
    subscription.remove()
  }

  @Test("N9, N10: a page in use in the middle ends the one pair, and what was sealed before it is") func busy() throws {
    let (space, region) = try sealed()
    defer { try? space.close() }
    let notifier = RecordingNotifier()
    let subscription = try region.subscribe(notifier, to: 0..<Self.pages)
    let pin = try region.pin(1000..<1001, .write)
    _ = notifier.take()
    #expect(errorCode { try region.seal(0..<Self.pages) } == .busy)
    #expect(notifier.take(.start, .end) == [.start(.seal, 0..<Self.pages), .end(.seal, 0..<Self.pages)])
    #expect(try (0..<Self.pages).filter { try region.isSealed($0) } == Array(0..<768))
    pin.unpin()
    subscription.remove()
  }

  @Test("N4, N9, N10: a start that would block is asked again with nothing sealed") func refused() throws {
    let (space, region) = try sealed()
    defer { try? space.close() }
    let refusals = Shared(3)
    let wasSealed = Findings()
    let notifier = RecordingNotifier({ range in
      if try (0..<Self.pages).contains(where: { try range.region.isSealed($0) }) {
        wasSealed.note("sealed before the start")
      }
      refusals.value -= 1
      return refusals.value >= 0 ? .wouldBlock : .done
    })
    let subscription = try region.subscribe(notifier, to: 0..<Self.pages)
    try region.seal(0..<Self.pages)
    #expect(wasSealed.all == [])
    let calls = notifier.take(.start, .end)
    #expect(calls.filter { $0.kind == .start }.count == 4)
    #expect(calls.filter { $0.kind == .end } == [.end(.seal, 0..<Self.pages)])
    subscription.remove()
  }

  @Test("N10: reclaiming is one start and one end, however many pages it is") func reclaim() throws {
    let space = try AddressSpace()
    defer { try? space.close() }
    let store = UnrulyStore(pages: Self.pages)
    let region = try space.map(.file(store), pages: Self.pages)
    for page in 0..<Self.pages { _ = region.peek(page) }
    region.poke(9, 1200)
    let notifier = RecordingNotifier()
    let subscription = try region.subscribe(notifier, to: 0..<Self.pages)
    #expect(try region.reclaim(0..<Self.pages) == Self.pages - 1)
    let calls = notifier.take()
    #expect(calls.filter { $0.kind != .middle } == [.start(.clear, 0..<Self.pages), .end(.clear, 0..<Self.pages)])
    #expect(calls.first?.kind == .start && calls.last?.kind == .end)
    let gone = calls.filter { $0.kind == .middle }.flatMap(\.pages)
    #expect(gone.sorted() == Array(0..<1200) + Array(1201..<Self.pages))
    #expect(region.peek(1200) == 9)
    for page in [0, 511, 512, 1999] { #expect(region.peek(page) == UInt8(truncatingIfNeeded: page + 1)) }
    subscription.remove()
  }

  @Test("N9, N10: who subscribes in the middle of a reclaim hears of what is still to go, and every start has its end")
  func late() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      let store = UnrulyStore(pages: Self.pages)
      let region = try space.map(.file(store), pages: Self.pages)
      for page in 0..<Self.pages { _ = region.peek(page) }
      let late = RecordingNotifier()
      let first = RecordingNotifier()
      let subscription = try region.subscribe(first, to: 0..<Self.pages)
      let mayGo = Shared(0)
      let held = Mutex<Subscription?>(nil)
      let thread = TestThread {
        while mayGo.value == 0 { Kernel.relax() }
        let made = try region.subscribe(late, to: 0..<Self.pages)
        held.withLock { $0 = made }
      }
      TestHooks.set(.cleared) { _ in mayGo.value = 1 }
      try check(region.reclaim(0..<Self.pages), is: Self.pages)
      try thread.join()
      TestHooks.set(.cleared, nil)
      for calls in [first.take(.start, .end), late.take(.start, .end)] {
        check(calls.count.isMultiple(of: 2) && calls.count <= 4, "\(calls)")
        for index in calls.indices { check(calls[index].kind, is: index.isMultiple(of: 2) ? .start : .end, "\(calls)") }
      }
      subscription.remove()
      try space.close()
    }
  }
}
