internal import SystemPackage

/// What `/proc/PID/smaps` says of one mapping. Amounts are in bytes.
public struct MappingDetails: Sendable, Hashable, Codable {
  public var mapping: ProcessMapping
  /// In memory and mapped, hugetlb pages not counted.
  public var resident = 0
  /// The same, with each page divided by how many map it.
  public var proportional = 0
  /// Mapped by others too, or more than once.
  public var sharedClean = 0
  public var sharedDirty = 0
  public var privateClean = 0
  public var privateDirty = 0
  /// Of ``resident``: not of a file.
  public var anonymous = 0
  /// Of ``resident``: mapped as transparent huge pages, of whatever kind.
  public var transparentHuge = 0
  /// Of the hugetlb pool, not counted in ``resident``.
  public var hugetlb = 0
  public var swapped = 0
  /// In bytes: the huge page's for hugetlb memory.
  public var pageSize = Memory.pageSize
  /// `VmFlags`, two letters each; see `Documentation/filesystems/proc.rst`.
  public var flags: Set<String> = []

  /// Registered with a userfaultfd for write protection (`uw`).
  public var isWriteProtectable: Bool { flags.contains("uw") }
  public var isHugetlb: Bool { flags.contains("ht") }
  /// In bytes.
  public var dirty: Int { sharedDirty + privateDirty }
  public var shared: Int { sharedClean + sharedDirty }

  init(mapping: ProcessMapping) { self.mapping = mapping }
}

extension ProcessMaps {
  /// Every mapping in the text of an `smaps`, in order of address.
  static func parse(smaps text: String) -> [MappingDetails] {
    var found: [MappingDetails] = []
    for line in text.split(separator: "\n") {
      // A mapping's line begins with an address, a detail's with a capital letter.
      if let first = line.utf8.first, first >= UInt8(ascii: "A"), first <= UInt8(ascii: "Z") {
        if !found.isEmpty { found[found.count - 1].read(line) }
      } else if let mapping = ProcessMapping(line: line) {
        found.append(MappingDetails(mapping: mapping))
      }
    }
    return found
  }

  /// The details of this process's mappings that overlap `range`. Costs as much as a walk over the page tables of everything that
  /// is mapped.
  static func allDetails(in range: AddressRange) throws(PinError) -> [MappingDetails] {
    parse(smaps: try readFile("/proc/self/smaps")).filter { $0.mapping.range.overlaps(range) }
  }

  /// Whether the program has locked a part of `range` (mlock(2)); false where that cannot be known.
  static func isLocked(_ range: AddressRange) -> Bool {
    ((try? allDetails(in: range)) ?? []).contains { $0.flags.contains("lo") }
  }
}

extension MappingDetails {
  fileprivate mutating func read(_ line: Substring) {
    guard let colon = line.utf8.firstIndex(of: UInt8(ascii: ":")) else { return }
    let value = line[line.index(after: colon)...]
    if line.hasPrefix("VmFlags:") {
      flags = Set(value.split(separator: " ").map(String.init))
      return
    }
    guard let path = Self.fields[line[..<colon]] else { return }
    let kibibytes = Int(value.drop { $0 == " " }.prefix { $0.isNumber }) ?? 0
    if path == \Self.pageSize { pageSize = kibibytes << 10 } else { self[keyPath: path] += kibibytes << 10 }
  }

  private static let fields: [Substring: any WritableKeyPath<Self, Int> & Sendable] = [
    "Rss": \.resident, "Pss": \.proportional, "Shared_Clean": \.sharedClean, "Shared_Dirty": \.sharedDirty,
    "Private_Clean": \.privateClean, "Private_Dirty": \.privateDirty, "Anonymous": \.anonymous,
    "AnonHugePages": \.transparentHuge, "ShmemPmdMapped": \.transparentHuge, "FilePmdMapped": \.transparentHuge,
    "Shared_Hugetlb": \.hugetlb, "Private_Hugetlb": \.hugetlb, "Swap": \.swapped, "KernelPageSize": \.pageSize,
  ]
}
