import Testing

@testable import PinKit

@Suite("Pins and what drops pages", .serialized) struct PinDropTests {
  private static let subjects = Subject.allCases.filter {
    $0.canDiscard && ($0 != .hugetlb || HugePages.canBeReserved)
  }

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
  func order() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 4)
    try region.fill(with: 9)
    try region.pin(0..<1).unpin()
    TestHooks.set(.pinCounted) { _ in region.pinGate.beginDrop() }
    #expect(errorCode { _ = try region.pin(2..<3, .fast) } == .wouldBlock)
    TestHooks.set(.pinCounted, nil)
    #expect(!region.table[2].isPinned)
    region.pinGate.endDrop()
    let protection = try region.protection()
    TestHooks.set(.pinCounted) { _ in protection.exclusive { _ in } }
    // The pin is counted once more, with the lock.
    let pin = try region.pin(2..<3, .write)
    TestHooks.set(.pinCounted, nil)
    #expect(region.table[2].pinsForWriting == 1)
    pin.unpin()
    try space.close()
  }
}
