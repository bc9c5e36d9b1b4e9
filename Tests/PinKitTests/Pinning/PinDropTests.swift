import CTestSupport
import Synchronization
import Testing

@testable import PinKit

@Suite("Pins and what drops pages", .serialized) struct PinDropTests {
  private static let subjects = Subject.allCases.filter(\.canDiscard)

  @Test("P4: nothing drops a page that is pinned; the error names it and nothing has changed", arguments: subjects)
  func drops(_ subject: Subject) throws {
    let space = try AddressSpace.forTests()
    try subject.with(space, pages: 6) { region in
      for index in 0..<6 { try region.store(UInt8(index + 1), toByteOffset: index * region.pageSize) }
      for options: PinOptions in [[], .write] {
        let pin = try region.pin(2..<4, options)
        for attempt in [{ try region.discard(0..<6) }, { _ = try region.tryDiscard(3..<4) }, { try region.unmap() }] {
          do {
            try attempt()
            Issue.record("it went through")
          } catch let error as PinError {
            #expect(error.code == .pinned && (error.advice.contains("2...3") || error.advice.contains("3 are")), "\(error)")
          }
        }
        #expect(errorCode { try space.close() } == .pinned)
        for index in 0..<6 {
          #expect(try region.load(fromByteOffset: index * region.pageSize, as: UInt8.self) == UInt8(index + 1))
        }
        try region.discard(0..<2)
        for index in 0..<2 { try region.store(UInt8(index + 1), toByteOffset: index * region.pageSize) }
        pin.unpin()
      }
      try region.discard(0..<6)
      #expect(try region.load(fromByteOffset: 2 * region.pageSize, as: UInt8.self) == 0)
    }
    try space.close()
  }

  @Test("P4: who waits for a pin goes on when it is gone", arguments: [0, 1, 2])
  func waits(_ kind: Int) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    try region.fill(with: 5)
    let kept = HeldPin(try region.pin(3..<4, .write))
    let hasEnded = Shared()
    let thread = TestThread {
      switch kind {
      case 0: try region.discard(0..<8, whilePinned: .wait)
      case 1: try region.unmap(whilePinned: .wait)
      default: try space.close(whilePinned: .wait)
      }
      hasEnded.value = 1
    }
    // Its tries stay in vain: a pin of another page may have to wait for one, and gets its turn.
    for _ in 0..<50 { try region.pin(6..<7).unpin() }
    #expect(hasEnded.value == 0)
    #expect(try region.load(fromByteOffset: 3 * 4096, as: UInt8.self) == 5)
    kept.drop()
    try thread.join()
    #expect(hasEnded.value == 1)
    try space.close()
  }

  @Test("P7: a region with live pins closes with an error, its pins work on, and each is given up once")
  func close() throws {
    let space = try AddressSpace.forTests()
    let pool = try space.framePool()
    let region = try space.map(.pool, pages: 8)
    try region.store(UInt64(42), toByteOffset: 4096)
    do {
      let pin = try region.pin(1..<3, .write)
      #expect(errorCode { try region.unmap() } == .pinned)
      #expect(errorCode { try space.close() } == .pinned)
      #expect(try region.load(fromByteOffset: 4096, as: UInt64.self) == 42)
      try region.pin(1..<2).unpin()
      try region.unmap(whilePinned: .leaveFrames)
      #expect(errorCode { _ = try region.pin(1..<2) } == .unmapped)
      let seen = unsafe pin.withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
      #expect(seen == 42)
      #expect(pool.usage.countedFrames == 2)
    }
    #expect(pool.usage == FramePool.Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0))
    let other = try space.map(.anonymous, pages: 2)
    let pin = try other.pin(0..<1)
    #expect(errorCode { try other.unmap(whilePinned: .leaveFrames) } == .unsupported)
    #expect(errorCode { try space.close(whilePinned: .leaveFrames) } == .pinned)
    pin.unpin()
    try space.close()
  }

  @Test("P4: a drop that begins when a pin was counted and not yet taken is seen by the pin")
  func order() async { await #expect(processExitsWith: .success) { try Self.order() } }

  private static func order() throws {
    ct_deadline(30)
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 4)
    try region.fill(with: 9)
    try region.pin(0..<1).unpin()
    TestHooks.set(.pinCounted) { _ in region.pinGate.beginDrop() }
    check(errorCode { _ = try region.pin(2..<3, .fast) }, is: .wouldBlock)
    TestHooks.set(.pinCounted, nil)
    check(!region.table[2].isPinned, "it is pinned")
    region.pinGate.endDrop()
    // Somebody who begins to decide on the page when its frame does not say yet that it is pinned.
    let pool = try space.map(.pool, pages: 4)
    try pool.pin(0..<1).unpin()
    TestHooks.set(.pinCounted) { _ = pool.table.claim($0) }
    check(errorCode { _ = try pool.pin(2..<3, .fast) }, is: .wouldBlock)
    TestHooks.set(.pinCounted, nil)
    pool.table.releaseClaim(2)
    check(!pool.table[2].isPinned, "it is pinned")
    // With the lock.
    let fresh = try space.map(.pool, pages: 4)
    TestHooks.set(.pinned) { _ in fresh.pinGate.beginDrop() }
    check(errorCode { _ = try fresh.pin(2..<3, .noWait) }, is: .wouldBlock)
    TestHooks.set(.pinned, nil)
    fresh.pinGate.endDrop()
    try check(!fresh.mayBePinned(2), "it is pinned")
    try space.close()
  }

  @Test("P6: a snapshot that is taken while a page is being pinned has the bytes from before", arguments: [true, false])
  func instant(_ isPool: Bool) async {
    await #expect(processExitsWith: .success) { [isPool = isPool as Bool] in try Self.instant(isPool) }
  }

  private static func instant(_ isPool: Bool) throws {
    ct_deadline(30)
    let space = try AddressSpace.forTests()
    let region = try space.map(isPool ? .pool : .anonymous, pages: 4)
    try region.fill(with: 9)
    try region.pin(0..<1).unpin()
    let taken = Mutex<Snapshot?>(nil)
    TestHooks.set(.pinning) { _ in
      TestHooks.set(.pinning, nil)
      let snapshot = try? region.snapshot()
      taken.withLock { $0 = snapshot }
    }
    let pin = try region.pin(2..<3, .write)
    TestHooks.set(.pinning, nil)
    guard let snapshot = taken.withLock({ $0 }) else {
      Issue.record("there is no snapshot")
      return
    }
    try unsafe pin.withUnsafeMutableBytes { unsafe $0[0] = 10 }
    var bytes = [UInt8](repeating: 0, count: 4096)
    try unsafe bytes.withUnsafeMutableBytes { try unsafe snapshot.copy(2..<3, into: $0) }
    check(bytes[0], is: 9)
    snapshot.close()
    pin.unpin()
    try space.close()
  }
}
