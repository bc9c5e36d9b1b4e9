import CTestSupport
import Foundation
import Testing

@testable import PinKit

/// Programs of the system that tests of file systems need.
enum SystemProgram {
  static func path(_ name: String) -> String? {
    ["/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"].map { $0 + name }.first {
      FileManager.default.isExecutableFile(atPath: $0)
    }
  }

  /// What it wrote to its standard output; throws if it failed.
  @discardableResult
  static func run(_ name: String, _ arguments: String...) throws -> String {
    var output = [CChar](repeating: 0, count: 4096)
    let program = try #require(path(name), "there is no \(name)")
    let status = unsafe ct_spawn(program, arguments.joined(separator: "\n"), 10, &output, 4096)
    let text = String(decoding: output.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    try #require(status == 0, "\(name) \(arguments) failed with \(status): \(text)")
    return text.trimmingCharacters(in: .whitespacesAndNewlines)
  }

  /// Runs mkfs.
  static func makeFileSystem(_ type: String, _ options: [String] = [], on file: String) throws {
    // It asks of every mounted loop device what it is attached to, and gives up at one whose file cannot be reached any more.
    if type == "btrfs" { ForgetfulDisk.releaseLeftovers() }
    let force = type == "ext4" ? ["-F", "-m", "0"] : ["-f"]
    try run("mkfs.\(type)", (["-q"] + force + options + [file]).joined(separator: "\n"))
  }
}

/// A block device of its own: a file behind a loop device, both gone when the object is.
final class LoopDevice: Sendable {
  /// `/dev/loop…`.
  let path: String
  /// The file behind it.
  let file: String

  /// Why there can be none here, or `nil`.
  static let obstacle: String? =
    if geteuid() != 0 {
      "loop devices need root"
    } else if !FileManager.default.fileExists(atPath: "/dev/loop-control") {
      "the kernel has no loop devices"
    } else {
      SystemProgram.path("losetup") == nil ? "there is no losetup" : nil
    }

  init(size: Int, options: [String] = []) throws {
    file = "\(Capabilities.temporaryDirectory)/pinkit-loop-\(UInt64.random(in: .min ... .max))"
    try #require(FileManager.default.createFile(atPath: file, contents: nil))
    try RawFile.edit(file) { try $0.truncate(atOffset: UInt64(size)) }
    do {
      path = try SystemProgram.run("losetup", (options + ["--find", "--show", file]).joined(separator: "\n"))
    } catch {
      try? FileManager.default.removeItem(atPath: file)
      throw error
    }
  }

  /// What the device loses is gone: reads and writes of it fail with EIO.
  func truncateBacking(to size: Int) throws { try RawFile.edit(file) { try $0.truncate(atOffset: UInt64(size)) } }

  deinit {
    _ = try? SystemProgram.run("losetup", "--detach", path)
    try? FileManager.default.removeItem(atPath: file)
  }
}

/// A file system on a loop device, or in memory.
final class LoopFileSystem: Sendable {
  enum Kind: String, CaseIterable, Sendable {
    case ext4, xfs, btrfs, tmpfs

    /// Why there can be none here, or `nil`. mkfs.xfs and mkfs.btrfs come from the packages xfsprogs and btrfs-progs.
    var obstacle: String? {
      guard self != .tmpfs else { return geteuid() == 0 ? nil : "a mount needs root" }
      if let obstacle = LoopDevice.obstacle { return obstacle }
      guard LoopFileSystem.isKnown(rawValue) else { return "the kernel has no \(rawValue)" }
      return SystemProgram.path("mkfs.\(rawValue)") == nil ? "there is no mkfs.\(rawValue)" : nil
    }
    /// In bytes: xfs makes none below 300 MiB.
    var leastSize: Int { self == .xfs ? 320 << 20 : self == .btrfs ? 128 << 20 : 16 << 20 }
  }

  let directory: String
  let device: LoopDevice?

  /// Whether the kernel has file systems of that type, or a module for them.
  static func isKnown(_ type: String) -> Bool {
    if (try? ProcessMaps.readFile("/proc/filesystems"))?.contains("\t\(type)\n") == true { return true }
    return SystemProgram.path("modprobe") != nil && (try? SystemProgram.run("modprobe", type)) != nil
  }

  /// Skips the test, or its case, where there can be none.
  init(_ kind: Kind, size: Int? = nil, make: [String] = [], mount: String = "defaults") throws {
    try Test.skip(if: kind.obstacle)
    let size = size ?? kind.leastSize
    directory = "\(Capabilities.temporaryDirectory)/pinkit-mount-\(UInt64.random(in: .min ... .max))"
    if kind == .tmpfs {
      device = nil
    } else {
      let device = try LoopDevice(size: size)
      self.device = device
      try SystemProgram.makeFileSystem(kind.rawValue, make, on: device.path)
    }
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
    do {
      let options = kind == .tmpfs ? "\(mount),size=\(size)" : mount
      try SystemProgram.run("mount", "-t", kind.rawValue, "-o", options, device?.path ?? "none", directory)
    } catch {
      try? FileManager.default.removeItem(atPath: directory)
      throw error
    }
  }

  func callAsFunction(_ name: String) -> String { "\(directory)/\(name)" }

  func remount(_ options: String) throws { try SystemProgram.run("mount", "-o", "remount,\(options)", directory) }

  /// Fills what is free, but for so many bytes.
  func occupy(leaving bytes: Int) throws {
    var free = statvfs()
    try #require(unsafe statvfs(directory, &free) == 0)
    var rest = Int(free.f_bavail) * Int(free.f_bsize) - bytes
    let descriptor = unsafe open(self("ballast"), O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    defer { close(descriptor) }
    // A part of what is free is the file system's own.
    var (offset, piece) = (0, rest)
    while piece >= 4096 {
      if posix_fallocate(descriptor, off_t(offset), off_t(min(piece, rest))) == 0 {
        offset += piece
        rest -= piece
        piece = min(piece, rest)
      } else {
        piece /= 2
      }
    }
    try #require(offset > 0)
  }

  deinit {
    _ = try? SystemProgram.run("umount", "-l", directory)
    try? FileManager.default.removeItem(atPath: directory)
  }
}
