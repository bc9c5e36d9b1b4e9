import CTestSupport
import Glibc
import SystemPackage
import Testing

@testable import PinKit

/// The leak, the owner's own pin, and the copies that nobody needed.
@Suite("Leaks and coherence") struct LeakTests {
  static let policies: [ReusePolicy] = [.exclusive, .refcount, .mapcount, .unsafeBareMapcount]
  private static let secret: UInt64 = 0x5ec_0e7

  private static func value(_ pin: borrowing Pin) -> UInt64 {
    unsafe pin.withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
  }

  private static func family(_ policy: ReusePolicy) throws -> (AddressSpace, Region, Region) {
    let space = try AddressSpace.forTests()
    let parent = try space.map(.pool, pages: 8)
    for page in 0..<8 { try parent.store(UInt64(page + 1), toByteOffset: page * 4096) }
    let child = try parent.clone(reuse: policy)
    return (space, parent, child)
  }

  @Test(
    "W3: share, pin in the child, unmap it, write in the parent: only the bare rule shows the secret", arguments: policies)
  func parentWrites(_ policy: ReusePolicy) throws {
    let (space, parent, child) = try Self.family(policy)
    let pin = try child.pin(3..<4)
    try child.unmap(whilePinned: .leaveFrames)
    try parent.store(Self.secret, toByteOffset: 3 * 4096)
    do {
      let seen = Self.value(pin)
      #expect(seen == (policy == .unsafeBareMapcount ? Self.secret : 4))
    }
    #expect(try parent.load(fromByteOffset: 3 * 4096, as: UInt64.self) == Self.secret)
    try space.close()
    do {
      let seen = Self.value(pin)
      #expect(seen == (policy == .unsafeBareMapcount ? Self.secret : 4), "the pin outlives the space")
    }
  }

  @Test("W3: the same the other way round: pinned in the parent, written in the child", arguments: policies)
  func childWrites(_ policy: ReusePolicy) throws {
    let (space, parent, child) = try Self.family(policy)
    let pin = try parent.pin(3..<4)
    try parent.unmap(whilePinned: .leaveFrames)
    try child.store(Self.secret, toByteOffset: 3 * 4096)
    do {
      let seen = Self.value(pin)
      #expect(seen == (policy == .unsafeBareMapcount ? Self.secret : 4))
    }
    try space.close()
  }

  @Test(
    "P4: a page that is pinned is not discarded, and whoever pinned it goes on to see what its owner writes",
    arguments: policies)
  func discards(_ policy: ReusePolicy) throws {
    let (space, parent, child) = try Self.family(policy)
    let pin = try child.pin(3..<4)
    #expect(errorCode { try child.discard(3..<4) } == .pinned)
    #expect(try child.load(fromByteOffset: 3 * 4096, as: UInt64.self) == 4)
    try parent.discard(3..<4)
    try parent.store(Self.secret, toByteOffset: 3 * 4096)
    do {
      let seen = Self.value(pin)
      #expect(seen == 4)
    }
    pin.unpin()
    try child.discard(3..<4)
    #expect(try child.load(fromByteOffset: 3 * 4096, as: UInt64.self) == 0)
    try space.close()
  }

  @Test("W3: frames that a clone took itself and shares with its own clone", arguments: policies)
  func clonesOfClones(_ policy: ReusePolicy) throws {
    let (space, _, child) = try Self.family(policy)
    try child.store(UInt64(77), toByteOffset: 3 * 4096)
    let grandchild = try child.clone(reuse: policy)
    let pin = try grandchild.pin(3..<4)
    do {
      let seen = Self.value(pin)
      #expect(seen == 77)
    }
    try grandchild.unmap(whilePinned: .leaveFrames)
    try child.store(Self.secret, toByteOffset: 3 * 4096)
    do {
      let seen = Self.value(pin)
      #expect(seen == (policy == .unsafeBareMapcount ? Self.secret : 77))
    }
    try space.close()
  }

  @Test("W5: what a clone wrote before it was cloned is copied when either of the two writes again", arguments: policies)
  func ownFramesAreShared(_ policy: ReusePolicy) throws {
    let (space, parent, child) = try Self.family(policy)
    for page in 0..<8 { try child.store(UInt64(100 + page), toByteOffset: page * 4096) }
    let grandchild = try child.clone(reuse: policy)
    for page in 0..<4 { try child.store(UInt64(200 + page), toByteOffset: page * 4096) }
    for page in 4..<8 { try grandchild.store(UInt64(300 + page), toByteOffset: page * 4096) }
    for page in 0..<8 {
      #expect(try parent.load(fromByteOffset: page * 4096, as: Int.self) == page + 1)
      #expect(try child.load(fromByteOffset: page * 4096, as: Int.self) == (page < 4 ? 200 : 100) + page)
      #expect(try grandchild.load(fromByteOffset: page * 4096, as: Int.self) == (page < 4 ? 100 : 300) + page)
    }
    try space.close()
  }

  @Test("W4: the owner's own pin sees what the owner writes, across clones, trackers and lookups", arguments: [true, false])
  func coherence(_ isWriting: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    try region.store(UInt64(1), toByteOffset: 0)
    let pin = try region.pin(0..<0 + 1, isWriting ? .write : [])
    let clone = try region.clone()
    #expect(try clone.load(fromByteOffset: 0, as: UInt64.self) == 1)
    try region.store(UInt64(2), toByteOffset: 0)
    do {
      let seen = Self.value(pin)
      #expect(seen == 2)
    }
    let tracker = try region.trackWrites()
    let reference = try region.lookUp(0)
    try region.store(UInt64(3), toByteOffset: 0)
    do {
      let seen = Self.value(pin)
      #expect(seen == 3)
    }
    _ = try tracker.collect()
    try clone.unmap()
    try region.store(UInt64(4), toByteOffset: 0)
    do {
      let seen = Self.value(pin)
      #expect(seen == 4)
    }
    #expect(reference.frame == pin.frameState(of: 0)?.frame)
    pin.unpin()
    try space.close()
  }

  @Test("W4: counting references alone leaves the owner's pin with the old frame")
  func incoherence() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    try region.store(UInt64(1), toByteOffset: 0)
    let pin = try region.pin(0..<1, .write)
    let clone = try region.clone(reuse: .refcount)
    try clone.unmap()
    try region.store(UInt64(2), toByteOffset: 0)
    do {
      let seen = Self.value(pin)
      #expect(seen == 1)
    }
    #expect(try region.load(fromByteOffset: 0, as: UInt64.self) == 2)
    pin.unpin()
    try space.close()
  }

  @Test("W4: a lookup that is held open costs one spurious copy under .refcount, which is counted; none under .mapcount")
  func spuriousCopies() throws {
    for (policy, copies) in [(ReusePolicy.refcount, UInt64(1)), (.mapcount, 0)] {
      let (space, parent, child) = try Self.family(policy)
      let tracker = try parent.trackWrites()
      try child.unmap()
      do {
        let reference = try parent.lookUp(5)
        try parent.store(UInt64(9), toByteOffset: 5 * 4096)
        #expect(space.counters[.spuriousCopies] == copies, "\(policy)")
        #expect(space.counters[.copies] == copies, "\(policy)")
        _ = reference.frame
      }
      try parent.store(UInt64(9), toByteOffset: 6 * 4096)
      // The reader counts after it has let the writer go on.
      for _ in 0..<100_000 where space.counters[.reuses] == 0 { Kernel.pause(nanoseconds: 20_000) }
      #expect(space.counters[.reuses] >= 1, "\(policy)")
      #expect(try parent.load(fromByteOffset: 5 * 4096, as: UInt64.self) == 9)
      _ = tracker
      try space.close()
    }
  }

  @Test("W4: a page that was taken since the last clone stays writable, however long references of it are held")
  func noSecondFrame() throws {
    var configuration = AddressSpace.Configuration()
    configuration.patience = 1
    configuration.failurePolicy = .failRegion
    let space = try AddressSpace(configuration: configuration)
    let region = try space.map(.pool, pages: 8)
    let clone = try region.clone(reuse: .refcount)
    let tracker = try region.trackWrites()
    try region.store(UInt64(1), toByteOffset: 0)
    let reference = try region.lookUp(0)
    _ = try tracker.collect()
    try region.store(UInt64(2), toByteOffset: 0)
    #expect(try tracker.collect().contains(0))
    #expect(try region.load(fromByteOffset: 0, as: UInt64.self) == 2)
    _ = (reference.frame, clone)
    try space.close()
  }

  @Test("P5: a clone waits for a frozen frame, and gives up with an error that names it")
  func frozen() throws {
    for isTaken in [false, true] {
      let (space, parent, child) = try Self.family(.exclusive)
      if isTaken { try parent.store(UInt64(5), toByteOffset: 3 * 4096) }
      let reference = try parent.lookUp(3)
      let isFrozen = reference.freeze(expecting: reference.state.counts.references)
      #expect(isFrozen)
      #expect(errorCode { _ = try parent.clone() } == .timedOut)
      #expect(reference.state.counts.isFrozen)
      reference.unfreeze()
      let second = try parent.clone()
      #expect(try second.load(fromByteOffset: 3 * 4096, as: UInt64.self) == (isTaken ? 5 : 4))
      _ = child
      try space.close()
    }
  }

  @Test("A reference outlives its region, its clone and the space, and its memory is given back with it")
  func outlives() throws {
    let space = try AddressSpace.forTests()
    let pool = try space.framePool()
    let region = try space.map(.pool, pages: 8)
    for page in 0..<8 { try region.store(UInt64(page + 1), toByteOffset: page * 4096) }
    let clone = try region.clone()
    do {
      let reference = try clone.lookUp(2)
      try region.unmap()
      try clone.unmap()
      #expect(pool.usage.countedFrames == 1)
      #expect(pool.usage.residentBytes == 4096)
      try space.close()
      var bytes = [UInt8](repeating: 0, count: 4096)
      try unsafe bytes.withUnsafeMutableBytes { try unsafe reference.copy(into: $0) }
      #expect(bytes[0] == 3)
    }
    #expect(pool.usage == FramePool.Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0))
  }

  @Test("Widening under mprotect opens no page that others have")
  func widening() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let parent = try space.map(.pool, pages: 64)
      for page in 0..<64 { try parent.store(UInt64(page + 1), toByteOffset: page * 4096) }
      let child = try parent.clone(mechanism: .mprotect)
      // Page 7 is the parent's alone from now on, and the only one.
      let tracker = try child.trackWrites(.mprotect)
      try child.store(UInt64(1000), toByteOffset: 7 * 4096)
      Injection.arm(.mprotect, .noMemory)
      try parent.store(UInt64(2000), toByteOffset: 7 * 4096)
      check(Injection.count, is: 1)
      Injection.disarm()
      for page in 0..<64 where page != 7 { try parent.store(UInt64(3000 + page), toByteOffset: page * 4096) }
      for page in 0..<64 {
        try check(child.load(fromByteOffset: page * 4096, as: Int.self), is: page == 7 ? 1000 : page + 1, "page \(page)")
      }
      _ = tracker
      try space.close()
    }
  }
}
