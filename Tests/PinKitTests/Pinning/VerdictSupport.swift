import CTestSupport
import Foundation
import Testing

@testable import PinKit

/// Where memory of a test comes from.
enum Ground: String, Sendable, CaseIterable, CustomTestStringConvertible {
  case anonymous, memfd, tmpfs, hugetlbfs, ext4, xfs, btrfs
  /// Beyond the matrix: what the kernel decides by other rules.
  case ramfs, overlayOnTmpfs, overlayOnExt4, zeroDevice, secret

  var testDescription: String { rawValue }
  static let matrix: [Ground] = [.anonymous, .memfd, .tmpfs, .hugetlbfs, .ext4, .xfs, .btrfs]

  var pageSize: Int { self == .hugetlbfs ? 2 << 20 : Memory.pageSize }

  /// Why it cannot be had here, or `nil`.
  var obstacle: String? {
    let isRoot = geteuid() == 0
    switch self {
    case .anonymous, .memfd, .zeroDevice: return nil
    case .secret: return Self.hasSecretMemory ? nil : "this kernel has no memfd_secret(2)"
    case .hugetlbfs: return isRoot ? HugePages.obstacle : "a mount needs root"
    case .tmpfs, .ramfs, .overlayOnTmpfs: return isRoot ? nil : "a mount needs root"
    case .overlayOnExt4: return Ground.ext4.obstacle
    case .ext4, .xfs, .btrfs:
      guard isRoot else { return "a mount needs root" }
      guard FileManager.default.fileExists(atPath: "/dev/loop-control") else { return "the kernel has no loop devices" }
      guard LoopFileSystem.isKnown(rawValue) else { return "the kernel has no \(rawValue)" }
      return SystemProgram.path("mkfs.\(rawValue)") == nil ? "there is no mkfs.\(rawValue)" : nil
    }
  }

  private static let hasSecretMemory: Bool = {
    guard let descriptor = secretDescriptor(size: 4096) else { return false }
    close(descriptor)
    return true
  }()

  /// Closed by the caller.
  static func secretDescriptor(size: Int) -> CInt? {
    let descriptor = ct_memfd_secret()
    guard descriptor >= 0 else { return nil }
    if ftruncate(descriptor, size) == 0 { return descriptor }
    close(descriptor)
    return nil
  }
}

extension Trait where Self == ConditionTrait {
  static func needs(_ ground: Ground) -> Self {
    .skipped(if: ground.obstacle.map { "\(ground.rawValue): \($0)" })
  }
}

/// A file system that a test made; everything is gone with the value.
final class MountedGround {
  let directory: String
  private var mounts: [String] = []

  init(_ ground: Ground) throws {
    directory = "\(Capabilities.temporaryDirectory)/pinkit-ground-\(UInt64.random(in: .min ... .max))"
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
    switch ground {
    case .overlayOnTmpfs, .overlayOnExt4:
      try mount(ground == .overlayOnExt4 ? .ext4 : .tmpfs, at: "base")
      for name in ["base/lower", "base/upper", "base/work", "files"] {
        try FileManager.default.createDirectory(atPath: "\(directory)/\(name)", withIntermediateDirectories: false)
      }
      let layers = ["lower", "upper", "work"].map { "\($0)dir=\(directory)/base/\($0)" }
      try mount("files", "-t", "overlay", "-o", layers.joined(separator: ","), "none")
    default: try mount(ground, at: "files")
    }
  }

  private func mount(_ ground: Ground, at name: String) throws {
    try FileManager.default.createDirectory(atPath: "\(directory)/\(name)", withIntermediateDirectories: false)
    guard [.ext4, .xfs, .btrfs].contains(ground) else {
      return try mount(name, "-t", ground.rawValue, "none")
    }
    let image = "\(directory)/image"
    try #require(FileManager.default.createFile(atPath: image, contents: nil))
    // Sparse: xfs takes no less than 300 MiB.
    try #require(unsafe truncate(image, 512 << 20) == 0)
    try SystemProgram.makeFileSystem(ground.rawValue, on: image)
    try mount(name, "-o", "loop", image)
  }

  private func mount(_ name: String, _ arguments: String...) throws {
    try SystemProgram.run("mount", (arguments + ["\(directory)/\(name)"]).joined(separator: "\n"))
    mounts.append("\(directory)/\(name)")
  }

  deinit {
    for mount in mounts.reversed() { _ = try? SystemProgram.run("umount", "-l", mount) }
    try? FileManager.default.removeItem(atPath: directory)
  }

  /// An empty file without a name any more, or with one.
  func makeFile(named: Bool = true) throws -> CInt {
    let path = "\(directory)/files/file-\(UInt64.random(in: .min ... .max))"
    let descriptor = unsafe open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    try #require(descriptor >= 0)
    if !named { unsafe unlink(path) }
    return descriptor
  }
}

/// One mapping of a ground, unmapped with the value.
@safe final class GroundMapping {
  let range: AddressRange

  init(
    _ ground: Ground, _ mount: MountedGround?, shared: Bool, protection: CInt = PROT_READ | PROT_WRITE, named: Bool = true
  )
    throws
  {
    let bytes = 2 * ground.pageSize
    let descriptor: CInt
    switch ground {
    case .anonymous: descriptor = -1
    case .memfd: descriptor = unsafe ct_memfd("ground")
    case .zeroDevice: descriptor = unsafe open("/dev/zero", O_RDWR | O_CLOEXEC)
    case .secret: descriptor = try #require(Ground.secretDescriptor(size: bytes))
    default: descriptor = try #require(mount).makeFile(named: named)
    }
    defer { if descriptor >= 0 { close(descriptor) } }
    if descriptor >= 0, ground != .zeroDevice, ground != .secret {
      try #require(ftruncate(descriptor, bytes) == 0)
      if ground != .hugetlbfs {
        let content = [UInt8](repeating: 7, count: bytes)
        try #require(unsafe pwrite(descriptor, content, bytes, 0) == bytes)
        try #require(fsync(descriptor) == 0)
      }
    }
    let flags = (shared ? MAP_SHARED : MAP_PRIVATE) | (descriptor < 0 ? MAP_ANONYMOUS : 0)
    let address = UInt(bitPattern: unsafe mmap(nil, bytes, protection, flags, descriptor, 0))
    try #require(address != UInt.max, "mmap of \(ground): errno \(errno)")
    range = AddressRange(start: address, count: bytes)
  }

  deinit { unsafe munmap(UnsafeMutableRawPointer(bitPattern: range.start), range.count) }
}
