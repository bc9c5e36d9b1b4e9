import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// What the kernel and the process set limits to.
@Suite("Clones at the limits") struct CloneLimitTests {
  /// The frame numbers and map counts that the kernel has for a region's pages; `nil` where it does not say.
  private static func kernelCounts(_ region: Region) throws -> [UInt64]? {
    let entries = try PageMap().entries(region.addresses).map { $0 & ((1 << 55) - 1) }
    guard entries.contains(where: { $0 != 0 }) else { return nil }
    let counts = unsafe open("/proc/kpagecount", O_RDONLY | O_CLOEXEC)
    guard counts >= 0 else { return nil }
    defer { close(counts) }
    return entries.map { entry in
      var count: UInt64 = 0
      return unsafe pread(counts, &count, 8, off_t(entry * 8)) == 8 ? count : .max
    }
  }

  static let canCount: Bool = {
    guard let space = try? AddressSpace.forTests(), let region = try? space.map(.pool, pages: 1) else { return false }
    defer { try? space.close() }
    _ = try? region.store(UInt8(1), toByteOffset: 0)
    return ((try? kernelCounts(region)) ?? nil) != nil
  }()

  @Test(
    "K1: map counts are the kernel's", .enabled(if: canCount, "/proc/kpagecount or frame numbers cannot be read"),
    arguments: Mechanisms.synchronous)
  func mapCounts(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    var regions = [try space.map(.pool, pages: 64)]
    try regions[0].fill(with: 1)
    var random = SeededRandom(seed: 7)
    for round in 0..<6 {
      regions.append(try regions.randomElement(using: &random)!.clone(mechanism: mechanism))
      for region in regions {
        for _ in 0..<6 {
          try region.store(UInt8(round), toByteOffset: Int.random(in: 0..<64, using: &random) * 4096)
        }
      }
      for region in regions {
        for page in 0..<64 { _ = try region.load(fromByteOffset: page * 4096, as: UInt8.self) }
      }
      for region in regions {
        let expected = try (0..<64).map { UInt64(try region.frameState($0).counts.mappings) }
        // A page that the kernel is moving at this moment, on whosever behalf, has other counts, or none.
        var counts: [UInt64] = []
        _ = spin {
          counts = ((try? Self.kernelCounts(region)) ?? nil) ?? []
          return counts == expected
        }
        #expect(counts == expected, "round \(round)")
      }
      if round == 3 { try regions.remove(at: 1).unmap() }
    }
    try space.close()
  }

  @Test(
    "vm.max_map_count: pages that break away in the worst order widen, and merge again",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer's own mappings fail at the limit"), .timeLimit(.minutes(60)),
    arguments: Mechanisms.synchronous)
  func worstOrder(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(150)
      let pages = 150_000
      let space = try AddressSpace()
      let parent = try space.map(.pool, pages: pages)
      for page in stride(from: 0, to: pages, by: 7) { try parent.store(UInt64(page), toByteOffset: page * 4096 + 8) }
      let clone = try parent.clone(mechanism: mechanism)
      // Nothing is taken along for an exact tracker, until there is no other way.
      let tracker = try clone.trackWrites(mechanism)
      let before = ct_mapping_count()
      for page in stride(from: 0, to: pages, by: 2) { try clone.store(UInt64(1), toByteOffset: page * 4096) }
      let most = ct_mapping_count()
      check(most > 40_000, "the limit was not near: \(most)")
      check(space.statistics.widenedOpenings > 0, "nothing was widened")
      // The process can go on.
      for _ in 0..<1000 { check(ct_map_anonymous(4096, 1) != 0, "no mapping is left for others") }
      for page in stride(from: 1, to: pages, by: 2) { try clone.store(UInt64(1), toByteOffset: page * 4096) }
      try check(tracker.collect().count, is: pages)
      let after = ct_mapping_count()
      check(after < before + 1100, "\(after) mappings where there were \(before): they do not merge")
      for page in 0..<pages {
        try check(parent.load(fromByteOffset: page * 4096, as: UInt64.self), is: 0, "page \(page)")
        if page % 7 == 0 {
          try check(clone.load(fromByteOffset: page * 4096 + 8, as: Int.self), is: page)
          try check(parent.load(fromByteOffset: page * 4096 + 8, as: Int.self), is: page)
        }
      }
      try space.close()
      check(RegionFrames.pieces.load(ordering: .relaxed), is: 0, "pieces")
    }
  }

  @Test(
    "Late writes through raw pointers never reach a sibling",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer maps its own where a region was"),
    arguments: Mechanisms.synchronous)
  func lateWrites(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      // Below PinKit's, which hands on what is not its own.
      check(ct_handle(SIGSEGV, 0), is: 0)
      for goesFirst in [true, false] {
        let space = try AddressSpace.forTests()
        let parent = try space.map(.pool, pages: 64)
        try parent.fill(with: 1)
        let child = try parent.clone(mechanism: mechanism)
        let (leaves, stays) = goesFirst ? (parent, child) : (child, parent)
        let start = UInt64(leaves.addresses.start)
        let isOver = Shared()
        let started = Shared()
        let writer = HostThread {
          while isOver.value == 0 {
            for page in UInt64(0)..<64 where ct_try_store(start + page * 4096, 9) != 0 { isOver.value = 1 }
            started.value = 1
          }
        }
        _ = spin { started.value == 1 }
        try leaves.unmap()
        isOver.value = 1
        writer.join()
        for page in 0..<64 { try check(stays.load(fromByteOffset: page * 4096, as: UInt8.self), is: 1, "page \(page)") }
        try space.close()
      }
    }
  }

  private final class Held {
    var space: AddressSpace?
    var regions: [Region] = []
    var pins: [HeldReference] = []
  }

  @Test(
    "fork: clones are not inherited, and a child that drops them does nothing to the parent's frames",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer has no child of fork()"),
    arguments: Mechanisms.synchronous)
  func forks(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let held = Held()
      let space = try AddressSpace.forTests()
      held.space = space
      let parent = try space.map(.pool, pages: 64)
      try parent.fill(with: 1)
      let child = try parent.clone(mechanism: mechanism)
      try child.fill(with: 2)
      held.regions = [parent, child, try child.clone(mechanism: mechanism)]
      held.pins = [HeldReference(try child.lookUp(3))]
      let pool = try space.framePool()
      let usage = pool.usage
      check(childStatus { errorCode { _ = try child.clone() } == .notInherited ? 0 : 1 }, is: 0)
      check(childStatus { errorCode { _ = try child.lookUp(1) } == .notInherited ? 0 : 1 }, is: 0)
      check(childStatus { errorCode { _ = try child.pin(1..<2) } == .notInherited ? 0 : 1 }, is: 0)
      check(
        childStatus {
          held.pins = []
          held.regions = []
          held.space = nil
          return pool.usage.extents == 0 ? 0 : 1
        }, is: 0)
      check(pool.usage, is: usage)
      for page in 0..<64 {
        try check(parent.load(fromByteOffset: page * 4096, as: UInt8.self), is: 1)
        try check(held.regions[2].load(fromByteOffset: page * 4096, as: UInt8.self), is: 2)
      }
      try space.close()
      var configuration = AddressSpace.Configuration()
      configuration.inheritsAcrossFork = true
      let other = try AddressSpace(configuration: configuration)
      let region = try other.map(.pool, pages: 4)
      check(errorCode { _ = try region.clone() }, is: .unsupported)
      try other.close()
    }
  }

  @Test("Clones that fail half-way leave everything as it was", arguments: Mechanisms.synchronous)
  func injected(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(100)
      let all: [Injection.Call] = [.mmap, .madvise, .register, .writeProtect, .mprotect, .pwrite, .open]
      let others: [(Injection.Call, Errno, PinError.Code?)] = [
        (.pwrite, .noSpace, .outOfSpace), (.pwrite, .interrupted, nil), (.open, .tooManyOpenFiles, .limitReached),
        (.register, .resourceBusy, .inUse), (.writeProtect, .resourceTemporarilyUnavailable, nil),
        (.writeProtect, .interrupted, nil), (.mmap, .resourceTemporarilyUnavailable, .system),
      ]
      var refusals = 0
      for (call, errno, expected) in all.map({ ($0, Errno.noMemory, .outOfMemory) }) + others {
        for skip in 0..<(errno == .noMemory ? 8 : 3) {
          let space = try AddressSpace.forTests()
          let pool = try space.framePool()
          let parent = try space.map(.pool, pages: 16)
          try parent.fill(with: 1)
          let first = try parent.clone(mechanism: mechanism)
          try parent.store(UInt8(2), toByteOffset: 5 * 4096)
          let pin = HeldPin(try parent.pin(6..<7, .write))
          Injection.arm(call, errno, skip: skip)
          let code = errorCode {
            let second = try parent.clone(mechanism: mechanism)
            try second.unmap()
          }
          Injection.disarm()
          if let code {
            refusals += 1
            check(code == expected || (errno == .noMemory && code == .limitReached), "\(call) \(errno), \(skip): \(code)")
          }
          let third = try parent.clone(mechanism: mechanism)
          try parent.fill(with: 3)
          for page in 0..<16 {
            try check(first.load(fromByteOffset: page * 4096, as: UInt8.self), is: 1, "\(call), \(skip), page \(page)")
            try check(third.load(fromByteOffset: page * 4096, as: UInt8.self), is: page == 5 ? 2 : 1, "\(call), \(skip)")
          }
          for region in [first, parent, third] { try region.unmap(whilePinned: .leaveFrames) }
          pin.drop()
          check(
            pool.usage, is: FramePool.Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0), "\(call), \(skip)")
          try space.close()
        }
      }
      check(refusals > 8, "\(refusals) refusals only")
      check(RegionFrames.pieces.load(ordering: .relaxed), is: 0, "pieces")
    }
  }
}

/// A pin that is held until it is dropped.
final class HeldPin: Sendable {
  private let pin: Mutex<Pin?>
  init(_ pin: consuming Pin) { self.pin = Mutex(pin) }
  func drop() { pin.withLock { $0 = nil } }
}
