internal import CUffd
internal import SystemPackage

/// One line of `/proc/PID/maps`: the kernel's word on what is mapped where.
public struct ProcessMapping: Sendable, Hashable, Codable {
  public var range: AddressRange
  public var isReadable: Bool
  public var isWritable: Bool
  public var isExecutable: Bool
  public var isShared: Bool
  /// Of the file, 0 for anonymous memory.
  public var inode: UInt64
  /// Of the file system that holds the file.
  public var device: DeviceNumber
  public var offset: UInt64
  public var path: String

  /// Private memory without a file.
  public var isAnonymous: Bool { inode == 0 && !isShared }
}

/// Which device a file system lies on, or which number it has without one.
public struct DeviceNumber: Sendable, Hashable, Codable, CustomStringConvertible {
  public var major: UInt32
  public var minor: UInt32
  public var description: String { "\(major):\(minor)" }
}

/// Reads `/proc/self/maps`.
public enum ProcessMaps {
  /// The mappings that overlap `range`, in order of address.
  public static func mappings(in range: AddressRange) throws(PinError) -> [ProcessMapping] {
    var found: [ProcessMapping] = []
    for line in try readFile("/proc/self/maps").split(separator: "\n") {
      guard let mapping = ProcessMapping(line: line), mapping.range.overlaps(range) else { continue }
      found.append(mapping)
    }
    return found
  }

  /// What `/proc/self/smaps` says of the mapping that holds an address beyond what `maps` says.
  struct Details: Sendable {
    /// In bytes: the huge page's for hugetlb memory.
    var pageSize = 4096
    /// `VmFlags`: `hg` huge pages wanted, `nh` unwanted, `uw` userfaultfd-wp.
    var flags: Set<String> = []
  }

  /// Costs as much as a walk over the page tables of everything that is mapped below.
  static func details(at address: UInt) throws(PinError) -> Details {
    var inside = false
    var details = Details(pageSize: Memory.pageSize)
    for line in try readFile("/proc/self/smaps").split(separator: "\n") {
      if let mapping = ProcessMapping(line: line) {
        if inside { break }
        inside = mapping.range.contains(address)
      } else if inside, line.hasPrefix("KernelPageSize:") {
        details.pageSize = (line.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 4) << 10
      } else if inside, line.hasPrefix("VmFlags:") {
        details.flags = Set(line.dropFirst(8).split(separator: " ").map(String.init))
      }
    }
    return details
  }

  /// Whether private memory gets transparent huge pages without asking.
  static var areHugePagesDefault: Bool {
    ((try? readFile("/sys/kernel/mm/transparent_hugepage/enabled")) ?? "").contains("[always]")
  }

  /// `vm.max_map_count`: how many mappings a process may have.
  static var maximumCount: Int {
    let text = (try? readFile("/proc/sys/vm/max_map_count")) ?? ""
    return Int(text.prefix { $0.isNumber }) ?? 65_530
  }

  /// How many mappings the process has; `nil` where that cannot be read.
  static func count() -> Int? {
    var count = 0
    do {
      try readPieces(of: "/proc/self/maps") { piece in for byte in piece where byte == 10 { count += 1 } }
    } catch { return nil }
    return count
  }

  /// Whether `path` lies on tmpfs.
  static func isTmpfs(_ path: String) -> Bool { unsafe path.withCString { unsafe cuffd_filesystem($0) } == 0x0102_1994 }

  /// The whole text of a file of `/proc` or `/sys`.
  static func readFile(_ path: String) throws(PinError) -> String {
    var text: [UInt8] = []
    try readPieces(of: path) { text += $0 }
    return String(decoding: text, as: UTF8.self)
  }

  private static func readPieces(of path: String, _ body: (ArraySlice<UInt8>) -> Void) throws(PinError) {
    let descriptor = try PinError.opened(unsafe path.withCString { unsafe cuffd_open_file($0, 0) }, path)
    defer { cuffd_close(descriptor) }
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let got = unsafe chunk.withUnsafeMutableBytes { unsafe cuffd_read_file(descriptor, $0.baseAddress!, $0.count) }
      if got == -Int(Errno.interrupted.rawValue) { continue }
      try PinError.check(got, "read \(path)")
      if got == 0 { return }
      body(chunk[..<got])
    }
  }
}

extension DeviceNumber {
  /// As `maps` writes it: `fd:01`.
  init?(hexadecimal text: Substring) {
    guard let colon = text.firstIndex(of: ":"), let major = UInt32(text[..<colon], radix: 16),
      let minor = UInt32(text[text.index(after: colon)...], radix: 16)
    else { return nil }
    self.init(major: major, minor: minor)
  }

  /// As `mountinfo` writes it: `253:1`.
  init?(decimal text: Substring) {
    guard let colon = text.firstIndex(of: ":"), let major = UInt32(text[..<colon]),
      let minor = UInt32(text[text.index(after: colon)...])
    else { return nil }
    self.init(major: major, minor: minor)
  }
}

extension ProcessMapping {
  init?(line: Substring) {
    let fields = line.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
    guard fields.count >= 5, let dash = fields[0].firstIndex(of: "-"),
      let start = UInt(fields[0][..<dash], radix: 16),
      let end = UInt(fields[0][fields[0].index(after: dash)...], radix: 16), start <= end,
      fields[1].utf8.count == 4, let device = DeviceNumber(hexadecimal: fields[3]),
      let offset = UInt64(fields[2], radix: 16), let inode = UInt64(fields[4])
    else { return nil }
    let rights = Array(fields[1])
    self.init(
      range: AddressRange(start: start, end: end), isReadable: rights[0] == "r", isWritable: rights[1] == "w",
      isExecutable: rights[2] == "x",
      isShared: rights[3] == "s", inode: inode, device: device, offset: offset,
      path: fields.count > 5 ? String(fields[5].drop { $0 == " " }) : "")
  }
}
