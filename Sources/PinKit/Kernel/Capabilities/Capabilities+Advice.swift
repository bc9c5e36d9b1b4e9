internal import SystemPackage

extension Capabilities {
  /// How a first write to a protected page is noticed.
  public enum Mechanism: String, Sendable, Hashable, Codable, CaseIterable {
    /// A userfaultfd that a thread reads: the writer waits, system calls included.
    case handlerThread
    /// `UFFD_FEATURE_SIGBUS`: resolved in the writing thread; system calls into protected memory fail with `EFAULT`.
    case inPlace
    /// `UFFD_FEATURE_WP_ASYNC` and `PAGEMAP_SCAN`: the kernel lets the write go on and remembers it.
    case asynchronous
    /// mprotect(2) and SIGSEGV; system calls into protected memory fail with `EFAULT`.
    case mprotect
  }

  /// What kind of memory.
  public enum MemoryKind: String, Sendable, Hashable, Codable, CaseIterable {
    case anonymous, pool, hugetlb
    /// A file mapping of the program's own.
    case adoptedFile
  }

  /// Whether a mechanism works on a kind of memory here, and why.
  public struct Verdict: Sendable, Hashable, Codable {
    public var mechanism: Mechanism
    public var memory: MemoryKind
    public var isAvailable: Bool
    /// Why not; or, where it is available, what to know first. May be empty.
    public var reason: String
    /// Any one of them may be enough; the narrowest comes first.
    public var fixes: [Fix]
  }

  /// One thing to do about something missing.
  public struct Fix: Sendable, Hashable, Codable {
    /// What is missing.
    public var problem: String
    /// The exact command or setting.
    public var command: String
    /// What it does, and how far it reaches.
    public var effect: String
  }

  /// A verdict for every mechanism on every kind of memory. A pure function of the value.
  public var verdicts: [Verdict] {
    MemoryKind.allCases.flatMap { memory in Mechanism.allCases.map { verdict(on: $0, memory) } }
  }

  /// Whether PinKit can run: whether any mechanism works on any memory.
  public var canRun: Bool { verdicts.contains(where: \.isAvailable) }

  /// What a program has to know that lets a driver pin managed memory (P8).
  public var deviceAdvice: String {
    let armed = verdicts.contains { $0.isAvailable && $0.mechanism != .asynchronous }
    return armed
      ? "pin first, then register (Region.register does both): protected memory answers EFAULT or ENOMEM to AF_XDP, VFIO and CUDA, and no fault is reported"
      : "no mechanism protects memory here, so drivers need no pin first"
  }

  /// Everything worth changing, without repetition: what the verdicts ask for, then what else falls short.
  public var fixes: [Fix] {
    var seen: Set<Fix> = []
    return (verdicts.flatMap(\.fixes) + otherFixes).filter { seen.insert($0).inserted }
  }

  private func verdict(on mechanism: Mechanism, _ memory: MemoryKind) -> Verdict {
    let finding = finding(mechanism, memory)
    return Verdict(
      mechanism: mechanism, memory: memory, isAvailable: finding.works, reason: finding.reason, fixes: finding.fixes)
  }

  private typealias Finding = (works: Bool, reason: String, fixes: [Fix])

  private func finding(_ mechanism: Mechanism, _ memory: MemoryKind) -> Finding {
    let backing = backing(memory)
    // Whether a file of the program's own can be mapped does not hang on whether the probe could make a temporary one.
    let isThere = memory == .adoptedFile && backing.memory.errno == nil ? anonymous.memory : backing.memory
    guard isThere.didWork else {
      let call = memory == .pool || memory == .hugetlb ? "memfd" : "mmap, mprotect"
      return (false, "\(call): \(explain(isThere))", memoryFixes(memory))
    }
    if mechanism == .mprotect { return (true, "system calls into protected memory fail with EFAULT", []) }

    guard let way = userfaultfd.best else { return (false, userfaultfdRefusal, userfaultfdFixes) }
    // What is not there yet has to stay protected, too.
    guard features.contains(.wpUnpopulated) else {
      return (false, "the kernel lacks WP_UNPOPULATED", [newKernel("6.4", "WP_UNPOPULATED")])
    }
    switch mechanism {
    case .asynchronous:
      guard features.contains(.wpAsync) else {
        return (false, "the kernel lacks WP_ASYNC", [newKernel("6.7", "WP_ASYNC")])
      }
      guard pagemapScan.didWork else { return (false, "PAGEMAP_SCAN: \(explain(pagemapScan))", [pagemapFix]) }
      return registered(backing.writeProtectAsync, memory, "")
    case .inPlace:
      guard features.contains(.sigbus) else {
        return (false, "the kernel lacks UFFD_FEATURE_SIGBUS", [newKernel("4.14", "UFFD_FEATURE_SIGBUS")])
      }
      return registered(backing.writeProtect, memory, "system calls into protected memory fail with EFAULT")
    case .handlerThread, .mprotect:
      guard way == .userModeOnly else { return registered(backing.writeProtect, memory, "") }
      let caveat = "only UFFD_USER_MODE_ONLY is allowed: system calls into protected memory fail with EFAULT"
      var result = registered(backing.writeProtect, memory, caveat)
      if result.works { result.fixes = userfaultfdFixes }
      return result
    }
  }

  /// The verdict of a registration that everything else allows.
  private func registered(_ attempt: Attempt, _ memory: MemoryKind, _ caveat: String) -> Finding {
    if attempt.didWork { return (true, caveat, []) }
    switch memory {
    case .adoptedFile where attempt.errno == .invalidArgument:
      let kind = fileSystem.map { "a mapping of a file on \($0)" } ?? "this file mapping"
      return (false, "the kernel does not register \(kind); use mprotect, or asynchronous where it works", [])
    case .pool, .hugetlb:
      guard features.contains(.wpHugetlbfsShmem) else {
        return (
          false, "the kernel lacks WP_HUGETLBFS_SHMEM", [newKernel("5.19", "write protection of shared and huge pages")]
        )
      }
      return (false, "registration: \(explain(attempt))", [])
    default: return (false, "registration: \(explain(attempt))", [])
    }
  }

  private func backing(_ memory: MemoryKind) -> Backing {
    switch memory {
    case .anonymous: anonymous
    case .pool: shmem
    case .hugetlb: hugetlb
    case .adoptedFile: file
    }
  }

  func explain(_ attempt: Attempt) -> String {
    switch attempt {
    case .worked: "works"
    case .refused(let errno): "\(errno)"
    case .notTried(let why): why.isEmpty ? "not tried" : why
    }
  }
}
