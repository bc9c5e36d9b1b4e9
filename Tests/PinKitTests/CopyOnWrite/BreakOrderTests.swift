import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// The steps of a break, one at a time.
@Suite("The order of a break") struct BreakOrderTests {
  private static func family(
    _ mechanism: WriteTracking.Mechanism, pages: Int = 64
  ) throws -> (AddressSpace, Region, Region) {
    let space = try AddressSpace.forTests()
    let parent = try space.map(.pool, pages: pages)
    for page in 0..<pages { try parent.store(UInt64(page + 1), toByteOffset: page * 4096) }
    return (space, parent, try parent.clone(mechanism: mechanism))
  }

  @Test("A break whose mapping, bytes or advice the kernel refuses once loses nothing", arguments: Mechanisms.synchronous)
  func refusals(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(30)
      let table: [(Injection.Call, Errno)] = [
        (.mmap, .noMemory), (.pwrite, .noMemory), (.pwrite, .noSpace), (.pwrite, .interrupted), (.madvise, .noMemory),
      ]
      for (call, errno) in table {
        for skip in 0..<2 {
          let (space, parent, child) = try Self.family(mechanism)
          let pool = try space.framePool()
          Injection.arm(call, errno, skip: skip)
          for page in [9, 40] { try child.store(UInt64(1000 + page), toByteOffset: page * 4096) }
          Injection.disarm()
          for page in 0..<64 {
            try check(parent.load(fromByteOffset: page * 4096, as: Int.self), is: page + 1, "\(call) \(errno)")
            let own = page == 9 || page == 40
            try check(
              child.load(fromByteOffset: page * 4096, as: Int.self), is: own ? 1000 + page : page + 1, "\(call) \(errno)")
          }
          check(errorCode { _ = try child.clone(mechanism: mechanism) } == nil, "\(call) \(errno)")
          try parent.unmap()
          try child.unmap()
          for region in space.mappedRegions { try region.unmap() }
          check(
            pool.usage, is: FramePool.Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0), "\(call) \(errno)")
          try space.close()
        }
      }
    }
  }

  @Test("The old frame stays counted until the new one is mapped", arguments: Mechanisms.synchronous)
  func countsLast(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(30)
      let (space, parent, child) = try Self.family(mechanism)
      let seen = Shared(-1)
      TestHooks.set(.mapped) { page in
        // Nobody may take the frame for the parent's alone while the child's processor could still reach it.
        seen.value = (try? parent.frameState(page).counts.mappings) ?? -2
      }
      try child.store(UInt64(1000), toByteOffset: 8 * 4096)
      TestHooks.set(.mapped, nil)
      check(seen.value, is: 2)
      try check(parent.frameState(8).counts.mappings, is: 1)
      try space.close()
    }
  }

  @Test(
    "W5: a fault takes no neighbour that another is copying, and does not wait for it",
    arguments: Mechanisms.inSignalHandlers)
  func neighbours(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(30)
      let (space, parent, child) = try Self.family(mechanism)
      let held = HeldThreads(at: .copied, 4...4)
      let first = TestThread { try child.store(UInt64(1004), toByteOffset: 4 * 4096) }
      check(held.first(), "nobody copies")
      let others = TestThread {
        for page in [12, 24, 0] { try child.store(UInt64(1000 + page), toByteOffset: page * 4096) }
      }
      check(spin(forAtMost: 100) { others.hasEnded }, "a fault waited for its neighbours'")
      held.letGo()
      try others.join()
      try first.join()
      TestHooks.set(.copied, nil)
      for page in 0..<64 {
        let own = [0, 4, 12, 24].contains(page)
        try check(child.load(fromByteOffset: page * 4096, as: Int.self), is: own ? 1000 + page : page + 1)
        try check(parent.load(fromByteOffset: page * 4096, as: Int.self), is: page + 1)
      }
      try space.close()
    }
  }

  @Test(
    "What breaks away beside a neighbour is counted in pieces that all go with the region",
    arguments: Mechanisms.inSignalHandlers, [false, true])
  func pieces(_ mechanism: WriteTracking.Mechanism, isClonedAgain: Bool) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, isClonedAgain = isClonedAgain as Bool] in
      ct_deadline(30)
      let (space, parent, child) = try Self.family(mechanism)
      // It has counted the pieces around page 5 when page 6 leaves.
      let held = HeldThreads(at: .moving, 5...5)
      let first = TestThread { try child.store(UInt64(1005), toByteOffset: 5 * 4096) }
      check(held.first(), "nobody moves")
      try child.store(UInt64(1006), toByteOffset: 6 * 4096)
      held.letGo()
      try first.join()
      TestHooks.set(.moving, nil)
      if isClonedAgain {
        // One run has left, in the middle of each.
        let other = try child.clone(mechanism: mechanism)
        check(RegionFrames.pieces.load(ordering: .sequentiallyConsistent), is: 4, "after a clone")
        try other.unmap()
      }
      for region in [parent, child] { try region.unmap() }
      check(RegionFrames.pieces.load(ordering: .sequentiallyConsistent), is: 0, "when all are gone")
      try space.close()
    }
  }

  @Test("P5: a clone of the whole extent, or a get, that arrives in the middle of a freeze makes it fail")
  func freezing() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(30)
      let pool = try FramePool()
      let raw = UInt(bitPattern: unsafe try pool.makeExtent(pageCount: 4))
      let extent = unsafe Extent.Pointer(bitPattern: raw)!
      unsafe extent.pointee.mappers.store(1, ordering: .sequentiallyConsistent)
      TestHooks.set(.freezing) { _ in
        unsafe Extent.Pointer(bitPattern: raw)!.pointee.addMapper(1)
      }
      check(unsafe extent.pointee.freeze(2, expecting: 1), is: false, "a clone")
      check(unsafe extent.pointee.word(2).rawValue, is: 0)
      TestHooks.set(.freezing) { _ in _ = unsafe Extent.Pointer(bitPattern: raw)!.pointee.tryGet(2) }
      check(unsafe extent.pointee.freeze(2, expecting: 2), is: false, "a get")
      TestHooks.set(.freezing, nil)
      check(unsafe extent.pointee.freeze(2, expecting: 3), is: true)
    }
  }

  @Test("W4: a fault that takes neighbours along leaves one that is being pinned", arguments: Mechanisms.inSignalHandlers)
  func pinning(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(30)
      let (space, parent, child) = try Self.family(mechanism)
      try child.unmap()
      // Page 4 is copied for the lookup's sake, and page 5 would be taken along if its pin looked like one.
      let reference = try parent.lookUp(4)
      let hasStored = Shared()
      let thread = Mutex<TestThread?>(nil)
      TestHooks.set(.pinned) { page in
        guard page == 5 else { return }
        let writer = TestThread {
          try parent.store(UInt64(1004), toByteOffset: 4 * 4096)
          hasStored.value = 1
        }
        thread.withLock { $0 = writer }
        check(spin(forAtMost: 100) { hasStored.value == 1 }, "the fault waits for the pin")
      }
      let pin = try parent.pin(5..<6)
      TestHooks.set(.pinned, nil)
      try thread.withLock { $0 }?.join()
      try parent.store(UInt64(1005), toByteOffset: 5 * 4096)
      let seen = unsafe pin.withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
      check(seen, is: 1005)
      check(space.counters[.copies], is: 1)
      _ = reference.frame
      pin.unpin()
      try space.close()
    }
  }

  /// Writes behind the region's back when its protection has just been lifted, and before its memory goes.
  private final class LateWriter: RegionAttachment {
    let start: UInt64
    let signals = Shared()
    init(_ region: Region) { start = UInt64(region.addresses.start) }
    func regionWillUnmap() {
      for page in UInt64(0)..<64 where ct_try_store(start + page * 4096, 9) != 0 { signals.add() }
    }
  }

  @Test("A region is closed to writers before its protection is lifted", arguments: Mechanisms.synchronous)
  func closed(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(30)
      // Below PinKit's, which hands on what is not its own.
      check(ct_handle(SIGSEGV, 0), is: 0)
      for goesFirst in [true, false] {
        let (space, parent, child) = try Self.family(mechanism)
        let (leaves, stays) = goesFirst ? (parent, child) : (child, parent)
        let writer = try leaves.attachments.findOrMake(LateWriter.self) { LateWriter(leaves) }
        try leaves.store(UInt64(5), toByteOffset: 3 * 4096)
        try leaves.unmap()
        check(writer.signals.value, is: 64)
        for page in 0..<64 { try check(stays.load(fromByteOffset: page * 4096, as: Int.self), is: page + 1) }
        try space.close()
      }
    }
  }
}
