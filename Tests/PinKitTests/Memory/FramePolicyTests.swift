import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("Reuse decisions") struct FramePolicyTests {
  /// Written down apart from the code: what each policy must answer, in words of who could notice.
  private static func expected(_ policy: ReusePolicy, _ counts: FrameCounts) -> ReuseDecision {
    guard !counts.isFrozen else { return .retry }
    let others = counts.references - 1
    let otherMappings = counts.mappings - 1
    let mayReuse: [ReusePolicy: Bool] = [
      .exclusive: counts.isExclusive || others == 0,
      .refcount: others == 0,
      .mapcount: otherMappings == 0,
      .unsafeBareMapcount: otherMappings == 0,
    ]
    return mayReuse[policy] == true ? .reuse : .copy
  }

  private static let policies: [ReusePolicy] = [.exclusive, .refcount, .mapcount, .unsafeBareMapcount]

  @Test("W2: the decision over its whole input space", arguments: policies)
  func decisions(_ policy: ReusePolicy) {
    for mappings in 1...6 {
      for extra in Array(0...6) + [1023, 1024, 1025, 2048, 1 << 20, FrameWord.maximumExtra] {
        for isExclusive in [false, true] {
          for isFrozen in [false, true] {
            let counts = FrameCounts(
              references: mappings + extra, mappings: mappings, isExclusive: isExclusive, isFrozen: isFrozen)
            #expect(policy.decide(counts) == Self.expected(policy, counts), "\(policy), \(counts)")
          }
        }
      }
    }
  }

  @Test("W2: which policies break sharing for a pin, and only the default and the safe ones do")
  func breaksSharing() {
    #expect(Self.policies.map(\.pinsBreakSharing) == [true, false, true, false])
  }

  @Test("P4: whoever is pinned is never taken for unpinned, whatever else holds the frame")
  func mayBePinned() {
    for mappings in 0...3 {
      for lookups in [0, 1, 2, 500, 1023] {
        for pins in [0, 1, 2, 3, 100] {
          let counts = FrameCounts(references: mappings + lookups + pins * FrameCounts.pinBias, mappings: mappings)
          if pins > 0 { #expect(counts.mayBePinned, "\(counts)") }
          if pins == 0 { #expect(!counts.mayBePinned, "\(counts)") }
        }
      }
      #expect(FrameCounts(references: mappings + 1024, mappings: mappings).mayBePinned, "a false positive is allowed")
    }
  }

  @Test("W4: a copy is spurious where nobody else maps or has pinned the frame")
  func spurious() {
    for policy in Self.policies {
      #expect(policy.isSpurious(FrameCounts(references: 2, mappings: 1)))
      #expect(!policy.isSpurious(FrameCounts(references: 2, mappings: 2)))
      #expect(!policy.isSpurious(FrameCounts(references: 1 + 1024, mappings: 1)))
    }
  }
}

@Suite("Frame words") struct FrameWordTests {
  @Test("Each field holds its whole range, and leaves the others alone")
  func fields() {
    let flags: [FrameWord.Flags] = [[], .locked, .exclusive, [.frozen, .dying, .sealed, .dirty, .writeback]]
    for extra in [0, 1, 1023, 1024, FrameWord.maximumExtra - 1, FrameWord.maximumExtra] {
      for mappings in [-FrameWord.maximumMappings - 1, -2, -1, 0, 1, 2, FrameWord.maximumMappings] {
        for flag in flags {
          var word = FrameWord(rawValue: .random(in: 0 ... .max))
          word.mappings = mappings
          word.extra = extra
          word.flags = flag
          #expect(word.extra == extra)
          #expect(word.mappings == mappings)
          #expect(word.flags == flag)
          word.mappings = 0
          word.extra = 0
          word.flags = []
          #expect(word.rawValue == 0)
        }
      }
    }
  }
}

@Suite("Frames and freezing") struct FrameExtentTests {
  private static func extent(pages: Int = 4, mappers: Int = 1) throws -> (FramePool, Extent.Pointer) {
    let pool = try FramePool()
    let extent = unsafe try pool.makeExtent(pageCount: pages)
    unsafe extent.pointee.mappers.store(mappers, ordering: .sequentiallyConsistent)
    return unsafe (pool, extent)
  }

  @Test("P5: a freeze succeeds with exactly the references that were expected, and keeps everybody out")
  func freezing() throws {
    let (pool, extent) = unsafe try Self.extent()
    #expect(unsafe !extent.pointee.freeze(0, expecting: 2))
    #expect(unsafe extent.pointee.tryGet(0))
    #expect(unsafe !extent.pointee.freeze(0, expecting: 1))
    #expect(unsafe extent.pointee.freeze(0, expecting: 2))
    #expect(unsafe !extent.pointee.freeze(0, expecting: 2), "frozen twice")
    #expect(unsafe extent.pointee.counts(0).isFrozen)
    #expect(unsafe ReusePolicy.exclusive.decide(extent.pointee.counts(0)) == .retry)
    #expect(unsafe !extent.pointee.claimFree(0))
    var now = Deadline(0)
    let isMapped = unsafe extent.pointee.addMapping(0, isExclusive: false, until: &now)
    #expect(!isMapped, "a mapping of a frozen frame")
    unsafe extent.pointee.unfreeze(0)
    unsafe extent.pointee.put(0)
    #expect(unsafe extent.pointee.word(0).rawValue == 0)
    _ = pool
  }

  @Test("S3: who wants a reference while they are frozen waits, and has it when they are not")
  func waits() throws {
    let (pool, extent) = unsafe try Self.extent(pages: 4_102)
    let raw = UInt(bitPattern: extent)
    // Of a number that no other test has.
    let page = 4_101
    #expect(unsafe extent.pointee.freeze(page, expecting: 1))
    let (turns, got) = (Shared(), Shared(-1))
    TestHooks.set(.spinning) { if $0 == page { turns.add() } }
    defer { TestHooks.set(.spinning, nil) }
    let getter = TestThread { got.value = unsafe Extent.Pointer(bitPattern: raw)!.pointee.tryGet(page) ? 1 : 0 }
    _ = spin { turns.value >= 2 || got.value != -1 }
    #expect(got.value == -1, "a mapped frame was seen as free, or a reference given while frozen")
    unsafe extent.pointee.unfreeze(page)
    try getter.join()
    #expect(got.value == 1)
    unsafe extent.pointee.put(page)
    _ = pool
  }

  @Test("P5/S3: gets, freezes and clones of the whole extent, raced")
  func races() throws {
    let (pool, extent) = unsafe try Self.extent()
    let raw = UInt(bitPattern: extent)
    let isOver = Shared()
    let frozen = Shared()
    let freezes = Shared()
    let findings = Findings()
    let getters = (0..<2).map { _ in
      TestThread {
        let extent = unsafe Extent.Pointer(bitPattern: raw)!
        while isOver.value == 0 {
          guard unsafe extent.pointee.tryGet(1) else {
            findings.note("S3: a mapped frame was seen as free")
            continue
          }
          if frozen.value != 0 { findings.note("S3: a reference while frozen") }
          unsafe extent.pointee.put(1)
          // Now and then nobody has a reference, on any machine.
          if Int.random(in: 0..<8) == 0 { sched_yield() }
        }
      }
    }
    let cloner = TestThread {
      let extent = unsafe Extent.Pointer(bitPattern: raw)!
      var never = Deadline(.max)
      while isOver.value == 0 {
        unsafe extent.pointee.addMapper(1)
        if unsafe extent.pointee.firstFrozen(at: &never) != nil { findings.note("still frozen") }
        if frozen.value != 0, unsafe extent.pointee.mappers.load(ordering: .sequentiallyConsistent) != 2 {
          findings.note("P5: frozen with other mappings than expected")
        }
        unsafe extent.pointee.addMapper(-1)
      }
    }
    var tries = 0
    while findings.isEmpty, tries < 20_000 || freezes.value < 100 {
      tries += 1
      guard unsafe extent.pointee.freeze(1, expecting: 1) else {
        if tries > 20_000 { sched_yield() }
        continue
      }
      freezes.add()
      frozen.value = 1
      if unsafe extent.pointee.word(1).extra != 0 { findings.note("P5: frozen with references") }
      frozen.value = 0
      unsafe extent.pointee.unfreeze(1)
    }
    isOver.value = 1
    for thread in getters + [cloner] { try thread.join() }
    #expect(findings.isEmpty, "\(findings.all)")
    #expect(freezes.value > 0)
    #expect(unsafe extent.pointee.word(1).extra == 0)
    _ = pool
  }

  @Test("The page lock is waited for as long as asked, and no longer")
  func pageLock() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 4)
    let reference = try region.lookUp(2)
    let seen = Mutex<PinError.Code?>(nil)
    let other = try reference.withPageLock {
      let other = TestThread {
        let reference = try region.lookUp(2)
        do { try reference.withPageLock(patience: 0.01) {} } catch {
          seen.withLock { $0 = (error as? PinError)?.code }
        }
      }
      try other.join()
      return other
    }
    #expect(other.hasEnded)
    #expect(seen.withLock { $0 } == .timedOut)
    let again = try reference.withPageLock { true }
    #expect(again)
    #expect(!reference.state.isLocked)
    try space.close()
  }
}
