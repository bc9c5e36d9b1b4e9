public import SystemPackage

/// What this kernel, this user and this container allow; every refusal is kept as data.
///
/// ``probe()`` fills it by trying; a made-up value is as good for ``verdicts`` and ``fixes``.
public struct Capabilities: Sendable, Hashable, Codable {
  /// uname(2)'s release.
  public var kernelRelease = ""
  /// The effective user id.
  public var effectiveUser: UInt32 = 0
  /// The same user outside of this process's user namespace, as `/proc/self/uid_map` says; `nil` where it has none there, or the process
  /// is in no user namespace of its own.
  public var outerUser: UInt32?
  /// Whether `CAP_SYS_PTRACE` is effective; `nil` where `/proc` does not say.
  public var hasPtraceCapability: Bool?
  public var seccomp: Seccomp?
  /// Which runtime left its mark: `docker`, `podman`, or the name systemd was given; `nil` for none.
  public var container: String?
  /// In bytes.
  public var pageSize = 4096

  public var userfaultfd = UserfaultfdAccess()
  /// What `UFFDIO_API` offers; empty where no descriptor can be had.
  public var features: Userfaultfd.Features = []
  /// Private memory without a file.
  public var anonymous = Backing()
  /// A memfd.
  public var shmem = Backing()
  /// A memfd of huge pages.
  public var hugetlb = Backing()
  /// A shared mapping of a file in the temporary directory.
  public var file = Backing()
  /// The type of the file system of ``file``: `ext4`.
  public var fileSystem: String?

  /// A `PAGEMAP_SCAN` of one page.
  public var pagemapScan: Attempt = .notTried("")
  /// Creating a ring.
  public var ioUring: Attempt = .notTried("")
  /// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`.
  public var membarrier: Attempt = .notTried("")
  /// Reading `/proc/kpagecount`.
  public var pageCounts: Attempt = .notTried("")

  public var transparentHugePages = TransparentHugePages()
  public var hugePages: HugePages?
  public var swap: Swap?
  public var sysctls = Sysctls()
  public var openFiles = Limit()
  /// In bytes.
  public var lockedMemory = Limit()

  /// A value that knows nothing: the start for a made-up one.
  public init() {}
}

extension Capabilities {
  /// What came of trying something.
  public enum Attempt: Sendable, Hashable {
    case worked
    case refused(Errno)
    /// It could not even be tried, and why.
    case notTried(String)
  }

  /// The ways to a userfaultfd.
  public struct UserfaultfdAccess: Sendable, Hashable, Codable {
    /// `/dev/userfaultfd`.
    public var device: Attempt = .notTried("")
    /// userfaultfd(2).
    public var systemCall: Attempt = .notTried("")
    /// userfaultfd(2) with `UFFD_USER_MODE_ONLY`.
    public var userModeOnly: Attempt = .notTried("")

    public subscript(way: Userfaultfd.Access) -> Attempt {
      get {
        switch way {
        case .device: device
        case .systemCall: systemCall
        case .userModeOnly: userModeOnly
        }
      }
      set {
        switch way {
        case .device: device = newValue
        case .systemCall: systemCall = newValue
        case .userModeOnly: userModeOnly = newValue
        }
      }
    }
  }

  /// What a small mapping of one kind of memory allowed.
  public struct Backing: Sendable, Hashable, Codable {
    /// Making the mapping, and taking and giving write access with mprotect(2).
    public var memory: Attempt = .notTried("")
    /// Registrations with a userfaultfd.
    public var missing: Attempt = .notTried("")
    public var minor: Attempt = .notTried("")
    public var writeProtect: Attempt = .notTried("")
    /// Write protection that the kernel resolves by itself, `UFFD_FEATURE_WP_ASYNC`.
    public var writeProtectAsync: Attempt = .notTried("")

    public init() {}
    /// The same for everything.
    public init(all attempt: Attempt) {
      (memory, missing, minor, writeProtect, writeProtectAsync) = (attempt, attempt, attempt, attempt, attempt)
    }
  }

  /// The `Seccomp` line of `/proc/self/status`.
  public enum Seccomp: Int, Sendable, Hashable, Codable {
    case disabled = 0
    case strict = 1
    case filter = 2
  }

  /// The chosen words of `/sys/kernel/mm/transparent_hugepage`.
  public struct TransparentHugePages: Sendable, Hashable, Codable {
    public var enabled: String?
    public var shmemEnabled: String?
  }

  /// Reserved huge pages of the default size.
  public struct HugePages: Sendable, Hashable, Codable {
    /// In bytes.
    public var pageSize: Int
    public var total: Int
    public var free: Int

    public init(pageSize: Int, total: Int, free: Int) {
      self.pageSize = pageSize
      self.total = total
      self.free = free
    }
  }

  /// In bytes.
  public struct Swap: Sendable, Hashable, Codable {
    public var total: Int
    public var free: Int
  }

  /// `nil` where the kernel has no such setting, or `/proc/sys` does not show it.
  public struct Sysctls: Sendable, Hashable, Codable {
    /// `vm.unprivileged_userfaultfd`
    public var unprivilegedUserfaultfd: Int?
    /// `vm.max_map_count`
    public var maxMapCount: Int?
    /// `vm.overcommit_memory`
    public var overcommitMemory: Int?
    /// `kernel.io_uring_disabled`
    public var ioUringDisabled: Int?
  }

  /// A limit of the process; `nil` is none.
  public struct Limit: Sendable, Hashable, Codable {
    public var soft: UInt64?
    public var hard: UInt64?
  }
}

extension Capabilities.Attempt {
  public var didWork: Bool { self == .worked }
  /// `nil` if it worked or was not tried.
  public var errno: Errno? {
    if case .refused(let errno) = self { errno } else { nil }
  }
}

extension Capabilities.Attempt: CustomStringConvertible {
  public var description: String {
    switch self {
    case .worked: "yes"
    case .refused(let errno): "no: \(errno) (errno \(errno.rawValue))"
    case .notTried(let why): why.isEmpty ? "not tried" : "unavailable: \(why)"
    }
  }
}

/// `{"works": true}`, or false with `errno` and the text, or with the `reason` why it was not tried.
extension Capabilities.Attempt: Codable {
  private enum Key: String, CodingKey { case works, errno, reason }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.container(keyedBy: Key.self)
    if try fields.decode(Bool.self, forKey: .works) {
      self = .worked
    } else if let errno = try fields.decodeIfPresent(CInt.self, forKey: .errno) {
      self = .refused(Errno(rawValue: errno))
    } else {
      self = .notTried(try fields.decode(String.self, forKey: .reason))
    }
  }

  public func encode(to encoder: any Encoder) throws {
    var fields = encoder.container(keyedBy: Key.self)
    try fields.encode(didWork, forKey: .works)
    switch self {
    case .worked: break
    case .refused(let errno):
      try fields.encode(errno.rawValue, forKey: .errno)
      try fields.encode("\(errno)", forKey: .reason)
    case .notTried(let why): try fields.encode(why, forKey: .reason)
    }
  }
}
