import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// K7: where something of the process is bounded, the program keeps its share.
@Suite("K7: the program's share") struct ShareTests {
  @Test(
    "K7: random writes under mprotect leave half of the mappings to the program, and miss nothing", .timeLimit(.minutes(60)),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has mappings of its own"), arguments: [2, 5])
  func mappings(_ distance: Int) async {
    await #expect(processExitsWith: .success) { [distance = distance as Int] in
      ct_deadline(280)
      let limit = ProcessMaps.maximumCount
      let pages = limit * distance
      let before = try #require(ProcessMaps.count())
      let tracked = try Tracked(.mprotect, pages: pages)
      for round in 0..<2 {
        for page in stride(from: 0, to: pages, by: distance) { ct_store(tracked.address(of: page), 5) }
        let most = try #require(ProcessMaps.count())
        check(most > limit / 3, "there was room: \(most)")
        check(most <= before + (limit - before) / 2 + 200, "\(most) of \(limit)")
        check(tracked.space.statistics.widenedOpenings > 0, "nothing was widened")
        HostThread {}.join()
        let dirty = try tracked.tracker.collect()
        check(!dirty.isExact, "widened, and exact?")
        var missing = 0
        for page in stride(from: 0, to: pages, by: distance) where !dirty.contains(page) { missing += 1 }
        check(missing, is: 0)
        check(dirty.exactPages.pages.allSatisfy { $0 % distance == 0 }, "reported as written, and was not")
        let after = try #require(ProcessMaps.count())
        check(after < before + 200, "round \(round): mappings stay")
      }
      // There is room again: sets are exact.
      try tracked.expectExact([0, 1, 2, 77, 100_000, pages - 1])
      try tracked.close()
    }
  }

  @Test(
    "K7: mappings that merge while they are counted are not taken for the program's", .timeLimit(.minutes(60)),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has mappings of its own"), arguments: [1, 9])
  func mergedMeanwhile(_ times: Int) async {
    await #expect(processExitsWith: .success) { [times = times as Int] in
      ct_deadline(280)
      let count = ProcessMaps.maximumCount / 5
      let tracked = try Tracked(.mprotect, pages: 2 * count)
      func write() { for page in 0..<count { ct_store(tracked.address(of: 2 * page), 5) } }
      write()
      let rounds = Atomic<Int>(0)
      let tracker = tracked.tracker
      TestHooks.set(.mappingsCounted) { _ in
        if rounds.add(1, ordering: .relaxed).newValue > times { return }
        do {
          try check(tracker.collect().isExact, "there was room")
        } catch { Issue.record("\(error)") }
        ct_store(tracked.address(of: 0), 6)
      }
      MappingBudget.look()
      TestHooks.set(.mappingsCounted, nil)
      check(rounds.load(ordering: .relaxed) > 1, "it was counted once")
      _ = try tracker.collect()
      write()
      check(tracked.space.statistics.widenedOpenings, is: 0)
      try check(tracker.collect().isExact, "there is room")
      try tracked.close()
    }
  }

  @Test("K7: lines of /proc/self/cgroup become folders, the own group first")
  func levels() {
    typealias Level = MemoryControlGroup.Level
    #expect(
      MemoryControlGroup.levels("4:memory:/a/b\n3:cpuset:/x\n0::/u\n") == [
        Level(path: "/sys/fs/cgroup/memory/a/b", isUnified: false), Level(path: "/sys/fs/cgroup/memory/a", isUnified: false),
        Level(path: "/sys/fs/cgroup/memory", isUnified: false), Level(path: "/sys/fs/cgroup/u", isUnified: true),
        Level(path: "/sys/fs/cgroup", isUnified: true),
      ])
    #expect(MemoryControlGroup.levels("rubbish\n1:cpu:/\n") == [])
    #expect(MemoryControlGroup(levels: [Level(path: "/nowhere", isUnified: true)]).room() == nil)
  }

  /// Where a group can be made below the one that this process is in, with the name of the file that limits it.
  static let parent: (path: String, limit: String)? = MemoryControlGroup().levels.lazy.compactMap { level in
    let probe = "\(level.path)/pinkit-probe-\(getpid())"
    guard unsafe mkdir(probe, 0o700) == 0 else { return nil }
    defer { unsafe rmdir(probe) }
    let limit = level.isUnified ? "memory.max" : "memory.limit_in_bytes"
    return unsafe access("\(probe)/\(limit)", W_OK) == 0 ? (level.path, limit) : nil
  }.first

  static func write(_ text: String, to path: String) {
    guard let file = unsafe fopen(path, "w") else { return check(false, "cannot open \(path)") }
    unsafe fputs(text, file)
    check(unsafe fclose(file), is: 0, path)
  }

  @Test(
    "K7: a snapshot without a limit is given up before the memory cgroup kills the process", .timeLimit(.minutes(60)),
    .enabled(if: parent != nil, "no memory cgroup can be made here"),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer takes memory of its own"),
    arguments: [true, false])
  func controlGroup(_ givesUp: Bool) async {
    await #expect(processExitsWith: .success) { [givesUp = givesUp as Bool] in
      ct_deadline(280)
      let (parent, limit) = Self.parent!
      let group = "\(parent)/pinkit-\(getpid())"
      check(unsafe mkdir(group, 0o700), is: 0)
      Self.write("\(96 << 20)", to: "\(group)/\(limit)")
      Self.write("\(getpid())", to: "\(group)/cgroup.procs")
      let space = try AddressSpace()
      let region = try space.map(.anonymous(hugePages: .never), pages: 15_360)
      try region.fill(with: 1)
      let snapshot = try region.snapshot(SnapshotOptions(atLimit: givesUp ? .giveUp : .holdWriters))
      for page in 0..<region.pageCount { ct_store(UInt64(region.addresses.start) + UInt64(page) * 4096, 2) }
      check(errorCode { _ = try snapshot.storedRuns() }, is: .snapshotLost)
      snapshot.close()
      try space.close()
      Self.write("\(getpid())", to: "\(parent)/cgroup.procs")
      unsafe rmdir(group)
    }
  }

  /// A folder with the files of a control group.
  private static func group(_ files: [String: String]) throws -> String {
    let path = "/tmp/pinkit-cgroup-\(getpid())-\(Kernel.now())"
    try #require(unsafe mkdir(path, 0o700) == 0)
    for (name, text) in files {
      let file = unsafe fopen("\(path)/\(name)", "w")!
      unsafe fputs(text, file)
      unsafe fclose(file)
    }
    return path
  }

  private static func remove(_ path: String) {
    for name in ["memory.max", "memory.current", "memory.stat", "memory.limit_in_bytes", "memory.usage_in_bytes"] {
      unsafe unlink("\(path)/\(name)")
    }
    unsafe rmdir(path)
  }

  @Test("K7: the room of a process is the least that any of its groups leaves")
  func room() throws {
    let unified = try Self.group([
      "memory.max": "1000000\n", "memory.current": "600000\n",
      "memory.stat": "anon 5\ninactive_file 60000\nactive_file 30000\nslab_reclaimable 10000\nslab 7\n",
    ])
    let old = try Self.group([
      "memory.limit_in_bytes": "900000\n", "memory.usage_in_bytes": "600000\n",
      "memory.stat": "inactive_file 7\ntotal_inactive_file 600\ntotal_active_file 400\n",
    ])
    // All but what can be dropped is free, whatever the number of the whole says meanwhile.
    let cached = try Self.group([
      "memory.max": "1000000\n", "memory.current": "1000100\n", "memory.stat": "inactive_file 10\nactive_file 900000\n",
    ])
    let open = try Self.group(["memory.max": "max\n", "memory.current": "600000\n"])
    let endless = try Self.group(["memory.limit_in_bytes": "9223372036854771712\n", "memory.usage_in_bytes": "6\n"])
    defer { for path in [unified, old, cached, open, endless] { Self.remove(path) } }
    func room(_ paths: (String, Bool)...) -> Int? {
      MemoryControlGroup(levels: paths.map { .init(path: $0.0, isUnified: $0.1) }).room()
    }
    #expect(room((unified, true)) == 500_000)
    #expect(room((old, false)) == 301_000)
    #expect(room((cached, true)) == 900_010)
    #expect(room((unified, true), (old, false), (open, true), (endless, false)) == 301_000)
    #expect(room((open, true), (endless, false)) == nil)
  }
}
