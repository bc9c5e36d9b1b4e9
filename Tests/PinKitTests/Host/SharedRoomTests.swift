import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// What the copies of snapshots take of memory that is bounded.
@Suite("K7: snapshots share what there is room for") struct SharedRoomTests {
  /// Runs `body` in a control group that leaves `room` bytes.
  private static func with(room: Int, _ body: () throws -> Void) rethrows {
    let (parent, limit) = ShareTests.parent!
    let group = "\(parent)/pinkit-room-\(getpid())"
    check(unsafe mkdir(group, 0o700), is: 0)
    ShareTests.write("\(getpid())", to: "\(group)/cgroup.procs")
    // What was taken before counts in the other group.
    ShareTests.write("\(room)", to: "\(group)/\(limit)")
    defer {
      ShareTests.write("\(getpid())", to: "\(parent)/cgroup.procs")
      unsafe rmdir(group)
    }
    // The last reading may be a tenth of a second old.
    Kernel.pause(nanoseconds: 150_000_000)
    try body()
  }

  private static func write(_ region: Region, _ pages: Range<Int>, _ value: UInt8) {
    for page in pages { ct_store(UInt64(region.addresses.start) + UInt64(page) * 4096, value) }
  }

  @Test(
    "K7: snapshots of several regions without a limit take no more together than the memory cgroup leaves",
    .timeLimit(.minutes(60)), .enabled(if: ShareTests.parent != nil, "no memory cgroup can be made here"),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer takes memory of its own"))
  func regions() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(280)
      let space = try AddressSpace()
      let count = (96 << 20) / 4096
      let regions = try (0..<3).map { _ in try space.map(.anonymous(hugePages: .never), pages: count) }
      for region in regions { Self.write(region, 0..<count, 1) }
      let one = (8 << 20) / 4096
      try Self.with(room: 120 << 20) {
        let snapshots = try regions.map { region in try region.snapshot() }
        for region in regions { Self.write(region, 0..<one, 2) }
        for snapshot in snapshots { try check(snapshot.read(one - 1)[0], is: 1) }
        for region in regions { Self.write(region, 0..<count, 2) }
        for snapshot in snapshots { check(errorCode { _ = try snapshot.read(0) }, is: .snapshotLost) }
        for snapshot in snapshots { snapshot.close() }
        for region in regions { try region.endSnapshots() }

        // What a snapshot that is closed, or is not the newest of its region any more, could have taken is free again.
        Kernel.pause(nanoseconds: 150_000_000)
        let half = (48 << 20) / 4096
        var open = try (0..<8).map { _ in try regions[0].snapshot() }
        Self.write(regions[0], 0..<half, 3)
        for snapshot in open { try check(snapshot.read(half - 1)[0], is: 2) }
        // The next older one goes on with half of the rest, which is a quarter.
        open.removeLast().close()
        Self.write(regions[0], half..<half + 2 * one, 3)
        for snapshot in open { try check(snapshot.read(half + one)[0], is: 2) }
        Self.write(regions[0], 0..<count, 3)
        for snapshot in open { check(errorCode { _ = try snapshot.read(0) }, is: .snapshotLost) }
        for snapshot in open { snapshot.close() }
        try space.close()
      }
    }
  }

  /// In bytes.
  private static func resident() throws -> Int {
    let line = try ProcessMaps.readFile("/proc/self/status").split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
    return (line?.split(separator: " ").compactMap { Int($0) }.first ?? 0) << 10
  }

  private static let hasHugePages =
    ((try? ProcessMaps.readFile("/sys/kernel/mm/transparent_hugepage/enabled")) ?? "[never]").contains("[never]") == false

  @Test(
    "K7: copies take no more memory than their limit, also where a few dense writes in every block would take huge pages",
    .timeLimit(.minutes(60)), .enabled(if: hasHugePages, "needs transparent huge pages"),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer takes memory of its own"),
    arguments: [WriteTracking.Mechanism.inPlace, .mprotect], [100, 256, 1024])
  func hugePages(_ mechanism: WriteTracking.Mechanism, _ limit: Int) async {
    await #expect(processExitsWith: .success) {
      [mechanism = mechanism as WriteTracking.Mechanism, limit = limit as Int] in
      ct_deadline(280)
      let space = try AddressSpace.forTests()
      let count = (256 << 20) / 4096
      let region = try space.map(.anonymous(hugePages: .never), pages: count)
      Self.write(region, 0..<count, 1)
      let snapshot = try region.snapshot(SnapshotOptions(mechanism: mechanism, captureLimit: limit << 20, atLimit: .giveUp))
      let before = try Self.resident()
      // Six faults in each block, and a seventh that takes neighbours along.
      for round in 0..<7 {
        for page in stride(from: round * 64, to: count, by: 512) { Self.write(region, page..<page + 1, 2) }
      }
      let taken = try Self.resident() - before
      check(taken >= snapshot.capturedBytes, "\(taken)")
      check(snapshot.capturedBytes > 128 * (6 + 16) * 4096, "no fault took many pages along: \(snapshot.capturedBytes)")
      // Page tables and the like.
      check(taken <= (limit << 20) + (8 << 20), "\(taken >> 20) MiB")
      if limit == 1024 { check(taken > 200 << 20, "no huge pages: \(taken >> 20) MiB") }
      try check(snapshot.read(0)[0], is: 1)
      try check(snapshot.read(6 * 64 + 1)[0], is: 1)
      snapshot.close()
      try space.close()
    }
  }
}
