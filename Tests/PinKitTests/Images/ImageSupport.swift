import CTestSupport
import CUffd
import Foundation
import SystemPackage
import Testing

@testable import PinKit

/// Pages in an array, as a snapshot would hold them.
struct ArraySource: ImageSource {
  var pageSize = 4096
  var pageCount: Int
  var identity = SnapshotIdentity()
  var parent: SnapshotIdentity?
  var backing = "an array"
  var runs: [Range<Int>]
  var bytes: [UInt8]
  /// Which page makes the source give up.
  var failing: Int?

  /// Every page full of noise, but those of `zeros`.
  init(pages: Int, seed: UInt64 = 1, zeros: [Range<Int>] = [], pageSize: Int = 4096) {
    self.pageSize = pageSize
    pageCount = pages
    runs = [0..<pages]
    bytes = Self.noise(pages * pageSize, seed)
    for run in zeros { setZero(run) }
  }

  /// No two granules of 4 KiB are the same, and none is zeros.
  static func noise(_ count: Int, _ seed: UInt64) -> [UInt8] {
    unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      for start in stride(from: 0, to: count, by: 4096) {
        unsafe UnsafeMutableRawBufferPointer(rebasing: UnsafeMutableRawBufferPointer(buffer)[start..<start + 4096])
          .copyBytes(from: pattern)
        unsafe UnsafeMutableRawPointer(buffer.baseAddress! + start + 2048)
          .storeBytes(of: (seed &+ UInt64(start)) &* 0x9e37_79b9_7f4a_7c15 | 1, as: UInt64.self)
      }
      filled = count
    }
  }

  private static let pattern = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }

  mutating func setZero(_ run: Range<Int>) { set(run, [UInt8](repeating: 0, count: run.count * pageSize)) }

  private mutating func set(_ run: Range<Int>, _ content: [UInt8]) {
    let start = run.lowerBound * pageSize
    unsafe bytes.withUnsafeMutableBytes { bytes in
      unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + content.count]).copyBytes(from: content)
    }
  }

  /// What comes of it when `pages` get new noise and `zeros` become zero: an increment.
  func changed(_ pages: [Range<Int>], zeros: [Range<Int>] = [], seed: UInt64 = 2) -> ArraySource {
    var next = self
    next.identity = SnapshotIdentity()
    next.parent = identity
    for run in pages { next.set(run, Self.noise(run.count * pageSize, seed &+ UInt64(run.lowerBound) &* 977)) }
    for run in zeros { next.setZero(run) }
    next.runs = DirtySet(pageCount: pageCount, runs: pages + zeros).runs
    return next
  }

  func copy(pages: Range<Int>, into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    if let failing, pages.contains(failing) { throw PinError(.stopped, operation: "read page \(failing)") }
    unsafe bytes.withUnsafeBytes { bytes in
      unsafe target.copyMemory(
        from: UnsafeRawBufferPointer(rebasing: bytes[pages.lowerBound * pageSize..<pages.upperBound * pageSize]))
    }
  }
}

/// A directory of the test's own, removed with everything in it.
final class ImageDirectory: Sendable {
  let path: String

  init(in parent: String = Capabilities.temporaryDirectory) throws {
    path = "\(parent)/pinkit-images-\(UInt64.random(in: .min ... .max))"
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func callAsFunction(_ name: String) -> String { "\(path)/\(name)" }
  var names: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? ["?"]).sorted() }
}

enum RawFile {
  static func read(_ path: String) throws -> [UInt8] { Array(try Data(contentsOf: URL(fileURLWithPath: path))) }
  static func write(_ bytes: [UInt8], _ path: String) throws { try Data(bytes).write(to: URL(fileURLWithPath: path)) }

  /// Changes the file in place: its holes stay.
  static func edit(_ path: String, _ body: (FileHandle) throws -> Void) throws {
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
    try body(file)
    try file.close()
  }

  static func flip(_ path: String, at offset: Int) throws {
    try edit(path) { file in
      try file.seek(toOffset: UInt64(offset))
      let byte = try #require(try file.read(upToCount: 1)?.first)
      try file.seek(toOffset: UInt64(offset))
      try file.write(contentsOf: [byte ^ 0x10])
    }
  }

  static func punch(_ path: String, _ range: Range<Int>) throws {
    try edit(path) { file in
      try #require(cuffd_punch_hole(file.fileDescriptor, Int64(range.lowerBound), Int64(range.count)) == 0)
    }
  }
}

/// Expects `body` to throw `code`, with all of `words` in what it says.
func expect(
  _ code: PinError.Code, _ words: String..., sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) {
  do {
    try body()
    Issue.record("nothing was thrown instead of \(code)", sourceLocation: sourceLocation)
  } catch let error as PinError {
    #expect(error.code == code, "\(error)", sourceLocation: sourceLocation)
    for word in words { #expect(error.description.contains(word), "\(error)", sourceLocation: sourceLocation) }
  } catch {
    Issue.record(error, sourceLocation: sourceLocation)
  }
}

extension Region {
  var content: [UInt8] {
    get throws { try unsafe withUnsafeMutableBytes { unsafe Array($0) } }
  }
}

/// A small file system of its own.
final class SmallFileSystem: Sendable {
  enum Kind: String, CaseIterable {
    case tmpfs, ext4

    /// Why there can be none here, or `nil`.
    var obstacle: String? { (self == .tmpfs ? LoopFileSystem.Kind.tmpfs : .ext4).obstacle }
  }
  let directory: String
  private let device: String?

  /// Skips the test, or its case, where there can be none.
  init(_ kind: Kind, size: Int) throws {
    try Test.skip(if: kind.obstacle)
    let name = "\(Capabilities.temporaryDirectory)/pinkit-small-\(UInt64.random(in: .min ... .max))"
    directory = name
    try FileManager.default.createDirectory(atPath: name, withIntermediateDirectories: false)
    switch kind {
    case .tmpfs:
      device = nil
      try SystemProgram.run("mount", "-t", "tmpfs", "-o", "size=\(size)", "none", name)
    case .ext4:
      let file = name + ".ext4"
      device = file
      try #require(FileManager.default.createFile(atPath: file, contents: nil))
      try RawFile.edit(file) { try $0.truncate(atOffset: UInt64(size)) }
      try SystemProgram.makeFileSystem("ext4", ["-O", "^has_journal"], on: file)
      try SystemProgram.run("mount", "-o", "loop", file, name)
    }
  }

  deinit {
    _ = try? SystemProgram.run("umount", "-l", directory)
    try? FileManager.default.removeItem(atPath: directory)
    if let device { try? FileManager.default.removeItem(atPath: device) }
  }
}
