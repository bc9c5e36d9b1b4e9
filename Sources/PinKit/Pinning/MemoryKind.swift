/// What memory is made of, as far as it matters to pins: who must hear of a write to it.
public enum MemoryKind: Sendable, Hashable, Codable {
  /// Private memory without a file, also a private mapping of `/dev/zero`.
  case anonymous
  /// memfd, tmpfs, System V or anonymous shared memory: nobody writes it back, nobody asks.
  case sharedMemory
  /// hugetlbfs or `MAP_HUGETLB`.
  case hugetlb
  /// A file of a file system that writes back or wants to hear of the first write: `ext4`, `xfs`, `btrfs`, `nfs`, `ramfs`.
  case file(fileSystem: String)
  /// A file that lies in persistent memory and is mapped itself (DAX). The file system may move its blocks only while nobody has a
  /// long-term pin, so that there is none.
  case directAccess(fileSystem: String)
  /// A file of which the process cannot see who must hear of a write: overlayfs, FUSE, a device, a file system that PinKit does not
  /// know. Taken for one that needs dirty tracking.
  case unknown(String)
  /// Memory of a device, without page frames of its own (`VM_IO`, `VM_PFNMAP`): nobody can pin it.
  case deviceMemory
  /// memfd_secret(2): not even the kernel maps it, so nobody can pin it.
  case secret
  /// A region over a ``PageStore``; the store's geometry says whether it must hear of writes.
  case store(needsDirtyTracking: Bool)

  /// Whether a shared writable mapping of it needs dirty tracking.
  public var tracksDirtyPages: Bool {
    switch self {
    case .anonymous, .sharedMemory, .hugetlb, .deviceMemory, .secret: false
    case .file, .directAccess, .unknown: true
    case .store(let needsDirtyTracking): needsDirtyTracking
    }
  }
}

extension MemoryKind {
  /// What the kernel shows of a mapping. `mounts` must be as young as the mapping.
  init(_ details: MappingDetails, _ mounts: MountTable) {
    let mapping = details.mapping
    // vma_is_anonymous: a private mapping of /dev/zero has no operations of the device's.
    let isPrivateZero = !mapping.isShared && mapping.path == "/dev/zero"
    if !details.flags.isDisjoint(with: ["io", "pf"]) {
      self = .deviceMemory
    } else if details.isHugetlb || details.pageSize > Memory.pageSize {
      self = .hugetlb
    } else if mapping.isAnonymous || isPrivateZero {
      self = .anonymous
    } else if let type = mounts.type(of: mapping.device) {
      self = Self.onFileSystem(type, mapping)
    } else {
      self = Self.withoutMount(mapping.path)
    }
  }

  /// Files of the kernel's own mounts, which no table shows, have names that it gives them.
  private static func withoutMount(_ path: String) -> MemoryKind {
    if path.hasPrefix("/secretmem") { return .secret }
    let names = ["/memfd:", "/SYSV", "/dev/zero", "[anon_shmem:"]
    return names.contains(where: path.hasPrefix) ? .sharedMemory : .unknown(path.isEmpty ? "a file without a name" : path)
  }

  private static func onFileSystem(_ type: String, _ mapping: ProcessMapping) -> MemoryKind {
    if mapping.isSpecialFile == true { return .unknown(mapping.path) }
    switch type {
    case "tmpfs": return .sharedMemory
    case "hugetlbfs": return .hugetlb
    case let name where writingBack.contains(name):
      return mapping.isDirectAccess == true ? .directAccess(fileSystem: name) : .file(fileSystem: name)
    case let name: return .unknown(name)
    }
  }

  /// Their mappings have `page_mkwrite`, or their inodes a backing device that writes back; each is enough for the kernel. ramfs does
  /// not write back, but its mappings are the generic ones, which ask.
  private static let writingBack: Set<String> = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "ocfs2", "gfs2", "bcachefs", "vfat", "msdos", "exfat",
    "ntfs3", "hfsplus", "udf", "ubifs", "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "orangefs", "ramfs", "zonefs",
  ]
}
