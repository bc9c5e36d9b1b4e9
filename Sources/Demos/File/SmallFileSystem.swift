internal import Foundation
internal import Glibc
internal import PinKit

/// A small ext4 on a loop device that nobody else can see: it is detached as soon as it is mounted, and goes with the descriptor that
/// leads to it, however the process ends.
final class SmallFileSystem {
  private let directory: CInt
  private let ballast: CInt

  /// - Throws: ``PinError`` `.unsupported`, with the reason, where none can be made.
  init(_ files: LedgerFiles, megabytes: Int = 16) throws {
    guard geteuid() == 0 else { throw Self.cannot("it takes root") }
    let (image, mountPoint) = (files.path("disk"), files.path("mounted"))
    guard FileManager.default.createFile(atPath: image, contents: nil),
      unsafe truncate(image, off_t(megabytes << 20)) == 0, unsafe mkdir(mountPoint, 0o700) == 0
    else { throw Self.cannot("no image could be made") }
    try Self.run("mkfs.ext4", "-q", "-F", "-m", "0", image)
    try Self.run("mount", "-t", "ext4", "-o", "loop", image, mountPoint)
    directory = unsafe open(mountPoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    let isDetached = unsafe umount2(mountPoint, CInt(MNT_DETACH)) == 0
    guard directory >= 0, isDetached else { throw Self.cannot("it could not be detached") }
    ballast = unsafe openat(directory, "ballast", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard ballast >= 0 else {
      close(directory)
      throw Self.cannot("it takes no files")
    }
  }

  deinit {
    close(ballast)
    close(directory)
  }

  func path(_ name: String) -> String { "/proc/self/fd/\(directory)/\(name)" }

  var freeBytes: Int {
    var free = statvfs()
    return unsafe fstatvfs(directory, &free) == 0 ? Int(free.f_bavail) * Int(free.f_frsize) : 0
  }

  /// Takes what is free but for so many bytes.
  func occupy(leaving bytes: Int) {
    var size = off_t(0)
    var piece = off_t(freeBytes - bytes)
    while piece >= 4096 {
      if freeBytes - Int(piece) >= bytes, posix_fallocate(ballast, size, piece) == 0 { size += piece } else { piece /= 2 }
      if freeBytes - bytes < piece { piece /= 2 }
    }
  }

  /// Gives it back.
  func makeRoom() { _ = ftruncate(ballast, 0) }

  private static func cannot(_ reason: String) -> PinError {
    PinError(.unsupported, operation: "make a small file system", advice: "Here \(reason).")
  }

  private static func run(_ name: String, _ arguments: String...) throws {
    let places = ["/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"].map { $0 + name }
    guard let path = places.first(where: FileManager.default.isExecutableFile) else { throw cannot("there is no \(name)") }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: path)
    process.arguments = arguments
    process.standardOutput = FileHandle.nullDevice
    process.standardError = FileHandle.nullDevice
    try process.run()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw cannot("\(name) failed") }
  }
}
