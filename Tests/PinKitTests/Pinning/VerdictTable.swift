@testable import PinKit

/// The table of the book, made from the predicates alone.
enum VerdictTable {
  private static let kinds: [(name: String, kind: MemoryKind)] = [
    ("anonymous", .anonymous), ("memfd", .sharedMemory), ("tmpfs", .sharedMemory), ("hugetlbfs", .hugetlb),
    ("ext4", .file(fileSystem: "ext4")), ("xfs", .file(fileSystem: "xfs")), ("btrfs", .file(fileSystem: "btrfs")),
    ("a PinKit store that writes back", .store(needsDirtyTracking: true)),
    ("a PinKit store that only fills", .store(needsDirtyTracking: false)),
    ("ramfs", .file(fileSystem: "ramfs")), ("a DAX file", .directAccess(fileSystem: "xfs")),
    ("overlayfs, FUSE, a device, anything unknown", .unknown("overlay")),
    ("device memory (`VM_PFNMAP`)", .deviceMemory), ("secret memory", .secret),
  ]

  static func cell(_ verdict: PinVerdict) -> String {
    switch verdict {
    case .allowed: "allowed"
    case .refused(.needsDirtyTracking): "**refused**: dirty tracking"
    case .refused(.directAccess): "**refused**: DAX"
    case .refused(.noPages): "**refused**: no pages"
    case .refused(.noAccess): "**refused**: no access"
    }
  }

  static var markdown: [String] {
    var lines = [
      "| writable mapping of | mapped | needs dirty tracking | wants write notification | short, read | short, write | long, read | long, write |",
      "|---|---|---|---|---|---|---|---|",
    ]
    for (name, kind) in kinds {
      for isShared in [true, false] {
        // Shared anonymous memory is a file of the kernel's own tmpfs.
        let memory = kind == .anonymous && isShared ? .sharedMemory : kind
        if case .store = kind, !isShared { continue }
        if kind == .secret, !isShared { continue }
        let mapping = DirtyTracking(
          range: AddressRange(start: 0, end: 0), memory: memory, isShared: isShared, isReadable: true, isWritable: true,
          isWriteProtectable: false)
        let verdicts = PinVerdict.Duration.allCases.flatMap { duration in
          PinVerdict.Access.allCases.map { cell(PinVerdict(of: mapping, for: $0, lasting: duration)) }
        }
        let facts = [mapping.needsDirtyTracking, mapping.wantsWriteNotify].map { $0 ? "yes" : "no" }
        lines.append("| " + ([name, isShared ? "shared" : "private"] + facts + verdicts).joined(separator: " | ") + " |")
      }
    }
    return lines
  }
}
