internal import Foundation

/// The texts to index, in ordinary memory, and how often each word is in them.
package struct TrackCorpus: Sendable {
  /// Why there is nothing to index; the text says what to do.
  package struct Problem: Error, Hashable, CustomStringConvertible {
    package var description: String
  }

  struct Text: Sendable {
    var name: String
    var bytes: [UInt8]
  }

  /// A part of a text, cut between words.
  struct Piece: Sendable, Hashable {
    var text: Int
    var bytes: Range<Int>
  }

  package static let defaultDirectory = "/usr/share/common-licenses"
  /// In bytes, all texts together.
  package static let largestSize = 16 << 20
  /// In bytes; of a longer word only the beginning counts.
  static let longestWord = 48
  private static let pieceSize = 4096

  let texts: [Text]
  let pieces: [Piece]
  /// How often each word occurs, counted by other means than the index's: the reference it is compared with.
  let counts: [ArraySlice<UInt8>: Int]

  var size: Int { texts.reduce(0) { $0 + $1.bytes.count } }
  var wordCount: Int { counts.values.reduce(0, +) }

  /// Reads `paths`, or the licence texts if there are none.
  init(paths: [String]) throws {
    let isDefault = paths.isEmpty
    let chosen = isDefault ? try Self.defaultPaths() : paths
    var texts: [Text] = []
    var problems: [String] = []
    var size = 0
    for path in chosen {
      do {
        let text = try Self.read(path, atMost: Self.largestSize - size)
        size += text.bytes.count
        texts.append(text)
      } catch let problem as Problem {
        problems.append(problem.description)
      }
    }
    guard isDefault || problems.isEmpty else { throw Problem(description: problems.joined(separator: "\n")) }
    guard !texts.isEmpty else {
      throw Problem(
        description: "No readable text in \(Self.defaultDirectory): name the files to index, as in `pinctl demo track *.md`."
      )
    }
    try self.init(texts: texts)
  }

  init(texts: [Text]) throws {
    self.texts = texts
    counts = Self.count(texts)
    pieces = texts.indices.flatMap { Self.cut(texts[$0].bytes, text: $0) }
    guard !counts.isEmpty else {
      throw Problem(
        description: "There is not one word in \(texts.map(\.name).joined(separator: ", ")): name files with text.")
    }
  }

  // MARK: Reading

  private static func defaultPaths() throws -> [String] {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: defaultDirectory)) ?? []
    guard !names.isEmpty else {
      throw Problem(
        description:
          "There are no licence texts in \(defaultDirectory): name the files to index, as in `pinctl demo track *.md`.")
    }
    // Links like GPL -> GPL-3 would count a text twice.
    let paths = names.map { URL(fileURLWithPath: "\(defaultDirectory)/\($0)").resolvingSymlinksInPath().path }
    return Set(paths).sorted()
  }

  private static func read(_ path: String, atMost limit: Int) throws -> Text {
    let files = FileManager.default
    let resolved = URL(fileURLWithPath: path).resolvingSymlinksInPath().path
    guard let attributes = try? files.attributesOfItem(atPath: resolved) else {
      throw Problem(description: "\(path): there is no such file.")
    }
    let type = attributes[.type] as? FileAttributeType
    if type == .typeDirectory {
      throw Problem(description: "\(path) is a directory: name the files in it, as in `pinctl demo track \(path)/*`.")
    }
    guard type == .typeRegular else { throw Problem(description: "\(path) is not a regular file.") }
    let size = (attributes[.size] as? NSNumber)?.intValue ?? 0
    guard size <= limit else {
      throw Problem(
        description:
          "\(path) is too much: all files together may have \(largestSize >> 20) MiB, so that a round stays short.")
    }
    guard let data = files.contents(atPath: resolved) else {
      throw Problem(description: "\(path) cannot be read: its permissions do not allow it.")
    }
    guard !data.isEmpty else { throw Problem(description: "\(path) is empty.") }
    let bytes = [UInt8](data)
    if let zero = bytes.firstIndex(of: 0) {
      throw Problem(description: "\(path) is not text: byte \(zero) is zero.")
    }
    return Text(name: path, bytes: bytes)
  }

  // MARK: Words

  /// Letters, digits, and everything beyond ASCII.
  @inline(__always) static func isInWord(_ byte: UInt8) -> Bool {
    byte >= 0x80 || (byte | 0x20 >= 0x61 && byte | 0x20 <= 0x7a) || (byte >= 0x30 && byte <= 0x39)
  }

  @inline(__always) static func lowercased(_ byte: UInt8) -> UInt8 { byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte }

  private static func count(_ texts: [Text]) -> [ArraySlice<UInt8>: Int] {
    var counts: [ArraySlice<UInt8>: Int] = [:]
    for text in texts {
      for word in text.bytes.map(lowercased).split(whereSeparator: { !isInWord($0) }) {
        counts[word.prefix(longestWord), default: 0] += 1
      }
    }
    return counts
  }

  private static func cut(_ bytes: [UInt8], text: Int) -> [Piece] {
    var pieces: [Piece] = []
    var start = 0
    while start < bytes.count {
      var end = min(start + pieceSize, bytes.count)
      while end < bytes.count, isInWord(bytes[end]) { end += 1 }
      pieces.append(Piece(text: text, bytes: start..<end))
      start = end
    }
    return pieces
  }
}
