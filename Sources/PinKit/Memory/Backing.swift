/// What the pages of a region are made of.
public struct Backing: Sendable, Hashable, CustomStringConvertible {
  enum Kind: Sendable, Hashable {
    case anonymous(HugePages)
    case pool(HugePages)
    case hugetlb(pageSize: Int)
    case adopted(Adopted)
    case file(StoredPages)
  }
  let kind: Kind
  /// Of adopted hugetlb memory.
  var hugetlb = HugetlbMapping.shared

  /// Whose pages a mapping of huge pages shows, and what is there when they are dropped.
  enum HugetlbMapping: Sendable, Hashable {
    /// Those of a file, which a hole can be punched in.
    case shared
    /// The process's own; nothing is beneath them.
    case `private`
    /// The process's own where it has written; beneath them is a file, whose bytes come back.
    case privateOfFile
  }

  /// Whether the kernel should back private memory with transparent huge pages. Protecting them costs a hundredth of what
  /// 4 KiB pages cost; the first write to a protected one splits it.
  public enum HugePages: Sendable, Hashable {
    /// What `/sys/kernel/mm/transparent_hugepage/enabled` says.
    case systemDefault
    /// Wherever the kernel can (`MADV_HUGEPAGE`).
    case prefer
    /// Never (`MADV_NOHUGEPAGE`).
    case never
  }

  /// What kind of memory was adopted, from `/proc/self/maps`.
  public enum Adopted: Sendable, Hashable {
    case anonymous(HugePages)
    /// memfd, tmpfs or anonymous shared memory.
    case sharedMemory
    /// hugetlbfs or `MAP_HUGETLB`.
    case hugetlb(pageSize: Int)
    /// A mapping of a file of a file system, or a segment of System V shared memory, which the kernel lets be watched in the same ways.
    case file(path: String, isShared: Bool)
  }

  /// Private memory of the process: the cheapest to protect.
  public static let anonymous = Backing(kind: .anonymous(.systemDefault))
  public static func anonymous(hugePages: HugePages = .systemDefault) -> Backing { Backing(kind: .anonymous(hugePages)) }
  /// Frames of the address space's pool: they can be shared with clones.
  public static let pool = Backing(kind: .pool(.never))
  /// The same with transparent huge pages where the kernel gives them to memfds, which needs
  /// `/sys/kernel/mm/transparent_hugepage/shmem_enabled` at `advise` or better; it is `never` by default.
  public static func pool(hugePages: HugePages) -> Backing { Backing(kind: .pool(hugePages)) }
  /// Huge pages of the hugetlb pool, reserved when the region is made. A page of the region is one of them.
  public static let hugetlb = Backing(kind: .hugetlb(pageSize: 2 << 20))

  /// What can be done with memory of a backing.
  public struct Support: OptionSet, Sendable, Hashable {
    public let rawValue: Int
    public init(rawValue: Int) { self.rawValue = rawValue }
    /// Write-protect faults delivered to threads, or in place.
    public static let synchronousFaults = Support(rawValue: 1 << 0)
    /// Write tracking inside the kernel (`WP_ASYNC`).
    public static let asynchronousTracking = Support(rawValue: 1 << 1)
    /// `mprotect` and SIGSEGV.
    public static let mprotectTracking = Support(rawValue: 1 << 2)
    /// `Region.discard(_:)` gives pages back that then read as zeros.
    public static let discard = Support(rawValue: 1 << 3)
    /// ``Region/clone(reuse:mechanism:)`` shares the frames with another region.
    public static let clone = Support(rawValue: 1 << 4)
    /// ``Region/snapshot(_:)`` keeps the bytes of a moment.
    public static let snapshot = Support(rawValue: 1 << 5)
    /// ``Region/flush()`` writes what has changed to a store, ``Region/reclaim(_:)`` drops what has not.
    public static let writeback = Support(rawValue: 1 << 6)
  }

  /// What this backing supports, provided that the kernel and its configuration do.
  public var support: Support {
    switch kind {
    case .pool: [.synchronousFaults, .asynchronousTracking, .mprotectTracking, .discard, .snapshot, .clone]
    case .adopted(.hugetlb) where hugetlb == .privateOfFile:
      [.synchronousFaults, .asynchronousTracking, .mprotectTracking, .snapshot]
    case .anonymous, .hugetlb, .adopted(.anonymous), .adopted(.sharedMemory), .adopted(.hugetlb):
      [.synchronousFaults, .asynchronousTracking, .mprotectTracking, .discard, .snapshot]
    case .adopted(.file): [.asynchronousTracking, .mprotectTracking, .snapshot]
    case .file: [.synchronousFaults, .snapshot, .clone, .writeback]
    }
  }

  /// The huge-page preference of private anonymous memory; `nil` for other memory.
  var hugePages: HugePages? {
    switch kind {
    case .anonymous(let preference), .adopted(.anonymous(let preference)): preference
    default: nil
    }
  }

  /// Whether its pages are frames of a pool.
  var isPool: Bool {
    switch kind {
    case .pool, .file: true
    default: false
    }
  }

  /// Where its pages come from, if it is a store.
  var stored: StoredPages? {
    if case .file(let pages) = kind { return pages }
    return nil
  }

  /// Whether its frames may be huge pages.
  var mayHaveHugeFrames: Bool {
    if case .pool(let preference) = kind { return preference != .never }
    return false
  }

  /// Whether a page that nobody has touched has no page-table entry of its own that a protection could sit in, and reads of
  /// it map the kernel's zero page.
  var isPrivateAnonymous: Bool {
    switch kind {
    case .anonymous, .adopted(.anonymous): true
    default: false
    }
  }

  /// Whether a page that is taken out of the mapping reads as zeros, and not as what a file has.
  var isDroppedByUnmapping: Bool {
    if case .adopted(.hugetlb) = kind { return hugetlb == .private }
    return isPrivateAnonymous
  }

  /// Whether the kernel can take a page out of the mapping and bring it back from a file.
  var isFileLike: Bool {
    switch kind {
    case .pool, .file, .adopted(.sharedMemory), .adopted(.file): true
    default: false
    }
  }

  public var description: String {
    switch kind {
    case .anonymous(.systemDefault): "anonymous"
    case .anonymous(.prefer): "anonymous, huge pages preferred"
    case .anonymous(.never): "anonymous, no huge pages"
    case .pool(.never): "pool"
    case .pool: "pool, huge pages preferred"
    case .file(let pages): "file (\(type(of: pages.store)))"
    case .hugetlb(let pageSize): "hugetlb, \(pageSize >> 20) MiB pages"
    case .adopted(.anonymous): "adopted anonymous memory"
    case .adopted(.sharedMemory): "adopted shared memory"
    case .adopted(.hugetlb(let pageSize)) where hugetlb == .privateOfFile:
      "adopted private mapping of hugetlb memory, \(pageSize >> 20) MiB pages"
    case .adopted(.hugetlb(let pageSize)): "adopted hugetlb memory, \(pageSize >> 20) MiB pages"
    case .adopted(.file(let path, let isShared)): "adopted \(isShared ? "shared" : "private") mapping of \(path)"
    }
  }
}
