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

  /// In bytes: how much more the process may take before the first of its limits; `nil` where there is none. What the kernel can drop, pages of
  /// files that nobody has used lately, counts as free.
  func room() -> Int? {
    var room: Int?
    for level in levels {
      guard let limit = number(level, level.isUnified ? "memory.max" : "memory.limit_in_bytes"), limit < 1 << 60,
        let used = number(level, level.isUnified ? "memory.current" : "memory.usage_in_bytes")
      else { continue }
      let free = max(0, limit - used + droppable(level))
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
    let key = level.isUnified ? "inactive_file " : "total_inactive_file "
    let text = (try? ProcessMaps.readFile("\(level.path)/memory.stat")) ?? ""
    for line in text.split(separator: "\n") where line.hasPrefix(key) { return Int(line.dropFirst(key.count)) ?? 0 }
    return 0
  }
}
