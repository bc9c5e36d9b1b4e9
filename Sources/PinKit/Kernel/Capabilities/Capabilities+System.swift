internal import CUffd

extension Capabilities {
  /// Everything that is read rather than tried.
  mutating func readSystem() {
    pageSize = Memory.pageSize
    effectiveUser = cuffd_effective_user()
    outerUser = Self.text("/proc/self/uid_map").flatMap { Self.outerUser(effectiveUser, map: $0) }
    kernelRelease = KernelVersion.release
    container = Self.containerName()

    let status = Self.fields(of: "/proc/self/status")
    seccomp = status["Seccomp"].flatMap { Int($0) }.flatMap(Seccomp.init(rawValue:))
    let ptrace: UInt64 = 1 << 19  // CAP_SYS_PTRACE
    hasPtraceCapability = status["CapEff"].flatMap { UInt64($0, radix: 16) }.map { $0 & ptrace != 0 }

    let memory = Self.fields(of: "/proc/meminfo")
    let kilobytes = { (name: String) in memory[name].flatMap { $0.split(separator: " ").first }.flatMap { Int($0) } }
    if let size = kilobytes("Hugepagesize"), let total = kilobytes("HugePages_Total"),
      let free = kilobytes("HugePages_Free")
    {
      hugePages = HugePages(pageSize: size * 1024, total: total, free: free)
    }
    if let total = kilobytes("SwapTotal"), let free = kilobytes("SwapFree") {
      swap = Swap(total: total * 1024, free: free * 1024)
    }
    transparentHugePages.enabled = Self.choice("/sys/kernel/mm/transparent_hugepage/enabled")
    transparentHugePages.shmemEnabled = Self.choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    sysctls = Sysctls(
      unprivilegedUserfaultfd: Self.number("/proc/sys/vm/unprivileged_userfaultfd"),
      maxMapCount: Self.number("/proc/sys/vm/max_map_count"),
      overcommitMemory: Self.number("/proc/sys/vm/overcommit_memory"),
      ioUringDisabled: Self.number("/proc/sys/kernel/io_uring_disabled"))

    openFiles = Self.limit { unsafe cuffd_limit_descriptors(&$0, &$1) }
    lockedMemory = Self.limit { unsafe cuffd_limit_locked_memory(&$0, &$1) }
    pageCounts = Self.attempt { () throws(PinError) in
      let path = "/proc/kpagecount"
      let descriptor = try PinError.opened(unsafe cuffd_open_file(path, 0), path)
      defer { cuffd_close(descriptor) }
      var count: UInt64 = 0
      try PinError.check(unsafe cuffd_pread(descriptor, &count, 8, 0), "read \(path)")
    }
  }

  static func fileSystemName(_ descriptor: CInt) -> String? {
    var type: UInt64 = 0
    guard unsafe cuffd_file_system_type(descriptor, &type) == 0 else { return nil }
    let names: [UInt64: String] = [
      0xef53: "ext4", 0x5846_5342: "xfs", 0x9123_683e: "btrfs", 0x0102_1994: "tmpfs", 0x794c_7630: "overlay",
      0x6969: "nfs", 0xf2f5_2010: "f2fs", 0x2fc1_2fc1: "zfs", 0x6573_5546: "fuse",
    ]
    return names[type] ?? "0x" + String(type, radix: 16)
  }

  /// The lines `name: value` of a file of `/proc`; none where it cannot be read.
  private static func fields(of path: String) -> [String: String] {
    var fields: [String: String] = [:]
    for line in text(path)?.split(separator: "\n") ?? [] {
      guard let colon = line.firstIndex(of: ":") else { continue }
      let value = line[line.index(after: colon)...].drop { $0 == " " || $0 == "\t" }
      fields[String(line[..<colon])] = String(value)
    }
    return fields
  }

  /// The word in brackets of `always [madvise] never`.
  private static func choice(_ path: String) -> String? {
    text(path)?.split(separator: " ").first { $0.first == "[" }.map { String($0.dropFirst().prefix { $0 != "]" }) }
  }

  /// The lines of a map are: first number inside, first number outside, how many.
  static func outerUser(_ user: UInt32, map: String) -> UInt32? {
    for line in map.split(separator: "\n") {
      let fields = line.split(separator: " ").compactMap { UInt32($0) }
      guard fields.count == 3, user >= fields[0], user - fields[0] < fields[2] else { continue }
      let (outside, isTooLarge) = fields[1].addingReportingOverflow(user - fields[0])
      return isTooLarge || outside == user ? nil : outside
    }
    return nil
  }

  private static func number(_ path: String) -> Int? { text(path).flatMap { Int($0.prefix { $0 != "\n" }) } }

  private static func text(_ path: String) -> String? { try? ProcessMaps.readFile(path) }

  private static func limit(_ read: (inout UInt64, inout UInt64) -> CInt) -> Limit {
    var (soft, hard) = (UInt64.max, UInt64.max)
    _ = read(&soft, &hard)
    return Limit(soft: soft == .max ? nil : soft, hard: hard == .max ? nil : hard)
  }

  private static func containerName() -> String? {
    if let name = text("/run/systemd/container")?.split(separator: "\n").first { return String(name) }
    if text("/.dockerenv") != nil { return "docker" }
    return text("/run/.containerenv") != nil ? "podman" : nil
  }

  /// `$TMPDIR`, or `/tmp`.
  static var temporaryDirectory: String { unsafe String(cString: cuffd_temporary_directory()) }
}
