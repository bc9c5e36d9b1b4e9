internal import Foundation
internal import Glibc
internal import SystemPackage

/// A file that the demo reads with a descriptor of its own, which PinKit does not know.
final class DemoFile {
  let path: String
  let descriptor: FileDescriptor

  /// Makes it.
  init(_ path: String, _ content: [UInt8]) throws {
    self.path = path
    try Data(content).write(to: URL(fileURLWithPath: path))
    descriptor = try FileDescriptor.open(FilePath(path), .readWrite)
  }

  /// One that is there.
  init(reading path: String) throws {
    self.path = path
    descriptor = try FileDescriptor.open(FilePath(path), .readOnly)
  }

  deinit { try? descriptor.close() }

  /// What is in it now.
  func bytes(_ range: Range<Int>) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: range.count)
    let count = unsafe try bytes.withUnsafeMutableBytes {
      unsafe try descriptor.read(fromAbsoluteOffset: Int64(range.lowerBound), into: $0)
    }
    return Array(bytes.prefix(count))
  }

  func page(_ page: Int) throws -> [UInt8] { try bytes(page * 4096..<(page + 1) * 4096) }
}
