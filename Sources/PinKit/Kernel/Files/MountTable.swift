internal import CUffd

/// `/proc/self/mountinfo`: which file system a device number stands for. A file that has lost its name still has the number.
struct MountTable: Sendable {
  private let types: [DeviceNumber: String]

  init() throws(PinError) { self.init(text: try ProcessMaps.readFile("/proc/self/mountinfo")) }

  init(text: String) {
    var types: [DeviceNumber: String] = [:]
    for line in text.split(separator: "\n") {
      // id parent major:minor root mountpoint options [optional…] - type source superoptions
      let fields = line.split(separator: " ")
      guard fields.count > 5, let device = DeviceNumber(decimal: fields[2]),
        let dash = fields[6...].firstIndex(of: "-"), dash + 1 < fields.count
      else { continue }
      types[device] = String(fields[dash + 1])
    }
    self.types = types
  }

  /// `ext4`, `tmpfs`, `fuse.sshfs`; `nil` for what the kernel mounts for itself, as for memfds, and for what this process cannot see.
  func type(of device: DeviceNumber) -> String? { types[device] }
}

extension ProcessMapping {
  /// Whether the file's bytes lie in persistent memory that is mapped itself (DAX). `nil` if the file cannot be found by its name.
  var isDirectAccess: Bool? {
    var found: UInt64 = 0
    let answer = unsafe path.withCString { unsafe cuffd_path_is_dax($0, &found) }
    return answer < 0 || found != inode ? nil : answer == 1
  }

  /// Whether the name leads to a device, a pipe or the like. `nil` if the file cannot be found by its name.
  var isSpecialFile: Bool? {
    guard path.hasPrefix("/"), let found = try? NamedFile.attributes(of: path), found.inode == inode else { return nil }
    return !found.isRegular
  }
}
