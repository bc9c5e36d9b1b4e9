internal import Synchronization

/// What the memory control groups of this process leave it: they kill it rather than refuse it memory (K7).
struct MemoryControlGroup {
  /// A folder of the cgroup file system, and the version of its interface.
  struct Level: Hashable {
    var path: String
    var isUnified: Bool
  }

  /// From the process's own group up to the root, as far as they can be seen from here.
  var levels: [Level]

  /// Of this process, as `/proc/self/cgroup` has it.
  init() {
    let text = (try? ProcessMaps.readFile("/proc/self/cgroup")) ?? ""
    levels = Self.levels(text)
  }

  init(levels: [Level]) { self.levels = levels }

  private static let seen = Mutex((at: UInt64(0), room: Int?.none))

  /// ``room()`` of this process, and when it was read, a tenth of a second ago at most: reading it takes a fifth of a millisecond.
  static func recentRoom() -> (room: Int?, at: UInt64) {
    let recent = seen.withLockIfAvailable { seen -> (room: Int?, at: UInt64) in
      if seen.at == 0 || Kernel.now() - seen.at > 100_000_000 { seen = (Kernel.now(), MemoryControlGroup().room()) }
      return (seen.room, seen.at)
    }
    // A child of fork() may have found it locked, for ever.
    return recent ?? (MemoryControlGroup().room(), Kernel.now())
  }

  /// The levels that lines `NUMBER:CONTROLLERS:PATH` stand for.
  static func levels(_ text: String) -> [Level] {
    var levels: [Level] = []
    for line in text.split(separator: "\n") {
      let fields = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
      guard fields.count == 3 else { continue }
      let isUnified = fields[0] == "0" && fields[1].isEmpty
      guard isUnified || fields[1].split(separator: ",").contains("memory") else { continue }
      let root = isUnified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory"
      var parts = fields[2].split(separator: "/").map(String.init)
      while true {
        levels.append(Level(path: ([root] + parts).joined(separator: "/"), isUnified: isUnified))
        if parts.isEmpty { break }
        parts.removeLast()
      }
    }
    return levels
  }

  /// In bytes: how much more the process may take before the first of its limits; `nil` where there is none. What the kernel can drop,
  /// pages of files and what it keeps of names and inodes, counts as free, and is left however much is used beside it.
  func room() -> Int? {
    var room: Int?
    for level in levels {
      guard let limit = number(level, level.isUnified ? "memory.max" : "memory.limit_in_bytes"), limit < 1 << 60,
        let used = number(level, level.isUnified ? "memory.current" : "memory.usage_in_bytes")
      else { continue }
      let free = min(limit, max(0, limit - used) + droppable(level))
      room = min(room ?? free, free)
    }
    return room
  }

  /// `nil` where there is no such file, or no number in it: `max`.
  private func number(_ level: Level, _ name: String) -> Int? {
    guard let text = try? ProcessMaps.readFile("\(level.path)/\(name)") else { return nil }
    return Int(text.prefix { $0.isNumber })
  }

  private func droppable(_ level: Level) -> Int {
    let keys =
      level.isUnified
      ? ["inactive_file ", "active_file ", "slab_reclaimable "] : ["total_inactive_file ", "total_active_file "]
    let text = (try? ProcessMaps.readFile("\(level.path)/memory.stat")) ?? ""
    var sum = 0
    for line in text.split(separator: "\n") {
      guard let key = keys.first(where: { line.hasPrefix($0) }), let bytes = Int(line.dropFirst(key.count)) else { continue }
      let (total, isTooLarge) = sum.addingReportingOverflow(max(0, bytes))
      sum = isTooLarge ? 1 << 60 : min(1 << 60, total)
    }
    return sum
  }
}
