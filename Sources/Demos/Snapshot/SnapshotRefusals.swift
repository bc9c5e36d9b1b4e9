internal import Foundation
internal import PinKit

/// Chains of images that must not be restored, and what comes of trying.
struct SnapshotRefusals {
  /// One try.
  struct Attempt {
    var subject: String
    var code: PinError.Code
    /// What the message must say, in pieces.
    var mentions: [String] = []
    var error: (any Error)?
    /// Whether the message says where the damage is.
    var isPrecise = true

    var holds: Bool {
      guard let error = error as? PinError, error.code == code, isPrecise else { return false }
      return mentions.allSatisfy(error.description.contains)
    }
  }

  let region: Region
  let files: LedgerFiles
  let full: SnapshotImage
  let increment: SnapshotImage

  func run() throws -> [Attempt] {
    let copy = files.path("damaged.img")
    try copyIncrement(to: copy)
    let page = increment.storedPages.runs[increment.storedPages.runs.count / 2].lowerBound
    try flipBit(copy, page)
    var flipped = attempt(
      Attempt(subject: "an image with one bit flipped, on page \(page), is refused", code: .corruptImage, mentions: [copy]),
      full.path, copy)
    flipped.isPrecise = Self.blocks(in: flipped.error).contains { $0.contains(page) }
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: copy))
    try file.truncate(atOffset: UInt64(increment.byteCount - increment.pageSize))
    try file.close()
    return [
      flipped,
      attempt(
        Attempt(
          subject: "an image that is a page short is refused", code: .corruptImage,
          mentions: [copy, "\(increment.byteCount)"]), full.path,
        copy),
      attempt(
        Attempt(subject: "images in the wrong order are refused", code: .brokenChain, mentions: [increment.path]),
        increment.path, full.path),
      attempt(
        Attempt(
          subject: "an increment without its full image is refused", code: .brokenChain,
          mentions: [full.identity.description]),
        increment.path),
    ]
  }

  private func attempt(_ attempt: Attempt, _ paths: String...) -> Attempt {
    var attempt = attempt
    do { try region.restore(from: paths.map { try SnapshotImage(path: $0) }) } catch { attempt.error = error }
    return attempt
  }

  /// The stored pages only, so that holes stay holes.
  private func copyIncrement(to path: String) throws {
    let header = ".pinkit"
    try FileManager.default.copyItem(atPath: increment.path + header, toPath: path + header)
    guard FileManager.default.createFile(atPath: path, contents: nil) else {
      throw CocoaError(.fileWriteUnknown)
    }
    let source = try FileHandle(forReadingFrom: URL(fileURLWithPath: increment.path))
    let target = try FileHandle(forUpdating: URL(fileURLWithPath: path))
    try target.truncate(atOffset: UInt64(increment.byteCount))
    for run in increment.storedPages.runs {
      let offset = UInt64(run.lowerBound * increment.pageSize)
      try source.seek(toOffset: offset)
      try target.seek(toOffset: offset)
      try target.write(contentsOf: try source.read(upToCount: run.count * increment.pageSize) ?? Data())
    }
    try source.close()
    try target.close()
  }

  private func flipBit(_ path: String, _ page: Int) throws {
    let offset = UInt64(page * increment.pageSize + increment.pageSize / 2)
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
    try file.seek(toOffset: offset)
    let byte = try file.read(upToCount: 1)?.first ?? 0
    try file.seek(toOffset: offset)
    try file.write(contentsOf: [byte ^ 0x10])
    try file.close()
  }

  /// The pages that the message names: `from 1 to 9`.
  private static func blocks(in error: (any Error)?) -> [ClosedRange<Int>] {
    let words = (error.map { "\($0)" } ?? "").split { !$0.isLetter && !$0.isNumber }
    return words.indices.dropLast(3).compactMap { at in
      guard words[at] == "from", words[at + 2] == "to", let first = Int(words[at + 1]), let last = Int(words[at + 3]),
        first <= last
      else { return nil }
      return first...last
    }
  }
}
