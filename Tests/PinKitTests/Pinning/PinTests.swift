import Testing

@testable import PinKit

@Suite("Pins") struct PinTests {
  @Test("The bytes of a pin are the region's, both ways, in every memory", arguments: Subject.allCases)
  func bytes(_ subject: Subject) throws {
    let space = try AddressSpace.forTests()
    try subject.with(space, pages: 8) { region in
      for index in 0..<8 { try region.store(UInt64(index + 1), toByteOffset: index * region.pageSize) }
      var pin = try region.pin(2..<6, .write)
      #expect(pin.pages == 2..<6 && pin.shortfall == nil && pin.byteCount == 4 * region.pageSize)
      do {
        let first = unsafe pin.bytes.unsafeLoad(as: UInt64.self)
        let last = unsafe pin.bytes.unsafeLoad(fromByteOffset: 3 * region.pageSize, as: UInt64.self)
        #expect(first == 3 && last == 6)
        var bytes = pin.mutableBytes
        bytes.storeBytes(of: UInt64(70), toByteOffset: region.pageSize, as: UInt64.self)
      }
      #expect(try region.load(fromByteOffset: 3 * region.pageSize, as: UInt64.self) == 70)
      #expect(try (0..<8).map { try region.mayBePinned($0) } == [false, false, true, true, true, true, false, false])
      pin.unpin()
      #expect(try !(0..<8).contains { try region.mayBePinned($0) })
      #expect((0..<8).allSatisfy { !region.table[$0].isPinned })
      let reading = try region.pin(0..<1)
      #expect(errorCode { try unsafe reading.withUnsafeMutableBytes { _ in } } == .accessDenied)
    }
    try space.close()
  }

  @Test("A pin of pages whose frames are in several extents shows them side by side")
  func pieces() throws {
    let space = try AddressSpace.forTests()
    let parent = try space.map(.pool, pages: 16)
    for index in 0..<16 { try parent.store(UInt64(index), toByteOffset: index * 4096) }
    let child = try parent.clone()
    let tracker = try child.trackWrites()
    for index in [3, 4, 9] { try child.store(UInt64(100 + index), toByteOffset: index * 4096) }
    _ = try tracker.collect()
    let pin = try child.pin(0..<16, .write)
    #expect(pin.pages == 0..<16)
    for index in 0..<16 {
      let seen = unsafe pin.withUnsafeBytes { unsafe $0.load(fromByteOffset: index * 4096, as: Int.self) }
      #expect(seen == ([3, 4, 9].contains(index) ? 100 : 0) + index)
      try unsafe pin.withUnsafeMutableBytes {
        unsafe $0.storeBytes(of: 200 + index, toByteOffset: index * 4096, as: Int.self)
      }
      #expect(try child.load(fromByteOffset: index * 4096, as: Int.self) == 200 + index)
      #expect(try parent.load(fromByteOffset: index * 4096, as: Int.self) == index)
    }
    pin.unpin()
    try child.unmap()
    try space.close()
    #expect(space.counters[.copies] >= 3)
  }

  @Test("Pages are pinned in order up to the first that cannot be, and the pin says why")
  func shortfall() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 16)
    try region.protect(10..<11)
    let pin = try region.pin(4..<14, .write)
    #expect(pin.pages == 4..<10 && pin.shortfall?.code == .accessDenied)
    #expect(try !region.mayBePinned(10) && !region.mayBePinned(11) && region.mayBePinned(9))
    #expect(errorCode { _ = try region.pin(10..<14, .write) } == .accessDenied)
    let reading = try region.pin(4..<14)
    #expect(reading.pages == 4..<14 && reading.shortfall == nil)
    #expect(errorCode { _ = try region.pin(3..<3) } == .invalidArgument)
    #expect(errorCode { _ = try region.pin(0..<17) } == .outOfBounds)
    pin.unpin()
    reading.unpin()
    try space.close()
  }

  @Test("A fast pin takes no fault, and what needs none is pinned", arguments: Mechanisms.synchronous)
  func fast(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let tracker = try region.trackWrites(mechanism)
    #expect(errorCode { _ = try region.pin(0..<4, .fast.union(.write)) } == .wouldBlock)
    #expect(try tracker.collect().isEmpty)
    let reading = try region.pin(0..<4, .fast)
    #expect(reading.pages == 0..<4)
    try region.store(UInt8(1), toByteOffset: 0)
    try region.store(UInt8(1), toByteOffset: 4096)
    #expect(spin { region.table[0].contains(.open) && region.table[1].contains(.open) })
    let pin = try region.pin(0..<4, [.fast, .write])
    #expect(pin.pages == 0..<2 && pin.shortfall?.code == .wouldBlock)
    pin.unpin()
    reading.unpin()
    try tracker.stop()
    let unprotected = try region.pin(0..<8, [.fast, .write])
    #expect(unprotected.pages == 0..<8)
    unprotected.unpin()
    try space.close()
  }

  @Test("A pin that may not wait does not wait for a lock, a claim, or a drop")
  func noWait() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let protection = try region.protection()
    for options: PinOptions in [.noWait, .fast, [.noWait, .write]] {
      protection.exclusive { _ in #expect(errorCode { _ = try region.pin(0..<1, options) } == .wouldBlock) }
      try region.pin(0..<1, options).unpin()
      protection.exclusive { _ in #expect(errorCode { _ = try region.pin(0..<1, options) } == .wouldBlock) }
      _ = region.table.claim(0)
      #expect(errorCode { _ = try region.pin(0..<1, options) } == .wouldBlock)
      region.table.releaseClaim(0)
      region.pinGate.beginDrop()
      #expect(errorCode { _ = try region.pin(0..<1, options) } == .wouldBlock)
      region.pinGate.endDrop()
    }
    #expect(!region.table[0].isPinned)
    try space.close()
  }

  @Test("A writer that a snapshot holds is not waited for by a pin that may not wait")
  func noWaitForSnapshots() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    try region.fill(with: 7)
    let snapshot = try region.snapshot(.init(captureLimit: 0))
    #expect(errorCode { _ = try region.pin(0..<1, [.write, .noWait]) } == .wouldBlock)
    snapshot.close()
    try region.pin(0..<1, [.write, .noWait]).unpin()
    try space.close()
  }

  @Test("W3: .unshare gives a pin for reading a frame of its own under every policy", arguments: LeakTests.policies)
  func unshare(_ policy: ReusePolicy) throws {
    let space = try AddressSpace.forTests()
    let parent = try space.map(.pool, pages: 4)
    try parent.fill(with: 1)
    let child = try parent.clone(reuse: policy)
    let pin = try child.pin(1..<2, .unshare)
    let other = try parent.frameState(1).frame
    #expect(pin.frameState(of: 1)?.frame != other)
    try child.unmap(whilePinned: .leaveFrames)
    try parent.store(UInt8(99), toByteOffset: 4096)
    let seen = unsafe pin.withUnsafeBytes { unsafe $0[0] }
    #expect(seen == 1)
    try space.close()
  }

  @Test("W3: a page whose frame is shared is not pinned as it is, however quickly")
  func sharedFrames() throws {
    let space = try AddressSpace.forTests()
    let parent = try space.map(.pool, pages: 8)
    try parent.fill(with: 1)
    let child = try parent.clone()
    try child.pin(0..<1).unpin()
    #expect(errorCode { _ = try child.pin(3..<4, .fast) } == .wouldBlock)
    let pin = try child.pin(3..<4)
    let other = try parent.frameState(3).frame
    #expect(pin.frameState(of: 3)?.frame != other)
    pin.unpin()
    try space.close()
  }

  @Test("P4: too many pins of a page are refused, and none is lost", arguments: [false, true])
  func limits(_ isWriting: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 2)
    let most = isWriting ? PageTable.Entry.maximumPinsForWriting : PageTable.Entry.maximumPinsForReading
    do {
      var pins: [KeptPin] = []
      for _ in 0..<most { pins.append(KeptPin(try region.pin(1..<2, isWriting ? .write : []))) }
      #expect(errorCode { _ = try region.pin(1..<2, isWriting ? .write : []) } == .limitReached)
      try region.pin(1..<2, isWriting ? [] : .write).unpin()
      #expect(region.table[1].pinsForWriting + region.table[1].pinsForReading == most)
      _ = pins.count
    }
    #expect(!region.table[1].isPinned && !region.table[0].isPinned)
    try space.close()
  }

  @Test(
    "P1: a long-term pin for writing of a file of a file system is refused, and says what to do",
    .enabled(if: ForeignMemory.isTemporaryDirectoryOnDisk, "the temporary directory is in memory"))
  func longTerm() throws {
    let space = try AddressSpace.forTests()
    try Subject.adoptedFile.with(space, pages: 4) { region in
      #expect(errorCode { _ = try region.pin(0..<1, [.write, .longTerm]) } == .needsDirtyTracking)
      #expect(errorCode { _ = try FixedBuffers(region, [0..<4]) } == .needsDirtyTracking)
      try region.pin(0..<1, .write).unpin()
      try region.pin(0..<1, .longTerm).unpin()
      #expect(!region.table[0].isPinned)
    }
    try space.close()
  }
}
