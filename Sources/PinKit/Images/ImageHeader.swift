internal import FoundationEssentials

/// What `<path>.pinkit` says about the image at `<path>`.
///
/// The file is two lines of JSON. The first holds these fields; the second holds the checksum of the first, without its newline.
struct ImageHeader: Sendable, Hashable {
  static let suffix = ".pinkit"
  static let format = "pinkit-image"
  static let version = 1
  /// In bytes; enough for 25 million separate runs.
  static let largestFile = 256 << 20

  enum Kind: String, Codable, Sendable { case full, increment }

  var identity: SnapshotIdentity
  var parent: SnapshotIdentity?
  var pageSize: Int
  var pageCount: Int
  var backing: String
  var pages: DirtySet
  var checksums: [Checksum]

  var kind: Kind { parent == nil ? .full : .increment }

  /// In bytes; what the data file's size must be.
  var byteCount: Int { pageSize * pageCount }

  /// The page sizes that an image can have: the blocks of the checksums are made of whole pages.
  static func supports(pageSize: Int) -> Bool {
    (4096...ImageBlocks.size).contains(pageSize) && pageSize.nonzeroBitCount == 1
  }
}

extension ImageHeader {
  private struct Fields: Codable {
    var format: String
    var version: Int
    var kind: Kind
    var identity: String
    var parent: String?
    var pageSize: Int
    var pageCount: Int
    var backing: String
    var pages: String
    var blockSize: Int
    var checksums: [String]
  }

  private struct Seal: Codable { var checksum: String }

  private struct Preamble: Codable {
    var format: String
    var version: Int
  }

  /// The file's content.
  func encoded() throws(PinError) -> [UInt8] {
    let fields = Fields(
      format: Self.format, version: Self.version, kind: kind, identity: identity.description,
      parent: parent?.description, pageSize: pageSize, pageCount: pageCount, backing: backing,
      pages: PageRunText.text(pages.runs), blockSize: ImageBlocks.size, checksums: checksums.map(\.description))
    do {
      let bytes = Self.sealed(Array(try Self.encoder.encode(fields)))
      guard bytes.count <= Self.largestFile else {
        throw PinError(
          .limitReached, operation: "describe an image of \(pages.runs.count) runs",
          advice: "The pages are too scattered to be listed; write a full image.")
      }
      return bytes
    } catch let error as PinError {
      throw error
    } catch {
      throw PinError(.invalidArgument, operation: "describe an image", advice: "\(error)")
    }
  }

  /// Adds the second line.
  static func sealed(_ line: [UInt8]) -> [UInt8] {
    let checksum = unsafe line.withUnsafeBytes { unsafe Checksum(of: $0) }
    return line + Array("\n{\"checksum\":\"\(checksum)\"}\n".utf8)
  }

  /// Reads a file's content. Believes nothing of it: whatever the bytes are, it returns or throws.
  ///
  /// - Parameter path: What an error calls the file.
  init(_ content: [UInt8], path: String) throws(PinError) {
    func refuse(_ why: String) -> PinError {
      PinError(
        .corruptImage, operation: "read the header \(path)", advice: "\(why) Take another copy of the image.")
    }
    guard let end = content.firstIndex(of: UInt8(ascii: "\n")) else {
      throw refuse("It is cut off, or is no header: there is no end of a line in its \(content.count) bytes.")
    }
    let line = Array(content[..<end])
    guard let seal = try? JSONDecoder().decode(Seal.self, from: Data(content[(end + 1)...])),
      content.last == UInt8(ascii: "\n")
    else { throw refuse("It is cut off, or is no header: its second line, the checksum, is not whole.") }
    let found = unsafe line.withUnsafeBytes { unsafe Checksum(of: $0) }
    guard Checksum(seal.checksum) == found else {
      throw refuse("Its checksum is \(found), and \(seal.checksum.prefix(64)) was expected: it was changed or damaged.")
    }
    let json = Data(line)
    guard let preamble = try? JSONDecoder().decode(Preamble.self, from: json), preamble.format == Self.format else {
      throw refuse("It is a file of another kind: the format is not \(Self.format).")
    }
    guard preamble.version == Self.version else {
      throw PinError(
        .unsupported, operation: "read the header \(path)",
        advice: "It has version \(preamble.version); this PinKit reads version \(Self.version).")
    }
    let fields: Fields
    do { fields = try JSONDecoder().decode(Fields.self, from: json) } catch {
      throw refuse("A field is missing or of the wrong type: \(error).")
    }
    do throws(Refusal) { try self.init(fields) } catch { throw refuse(error.text) }
  }

  private struct Refusal: Error { var text: String }

  private init(_ fields: Fields) throws(Refusal) {
    func expect(_ condition: Bool, _ text: @autoclosure () -> String) throws(Refusal) {
      if !condition { throw Refusal(text: text()) }
    }
    guard let identity = SnapshotIdentity(fields.identity) else {
      throw Refusal(text: "The identity \(fields.identity.prefix(64)) is not 32 hexadecimal digits.")
    }
    self.identity = identity
    parent = fields.parent.flatMap { SnapshotIdentity($0) }
    try expect((parent == nil) == (fields.parent == nil), "The parent's identity is not 32 hexadecimal digits.")
    try expect(parent != identity, "The image is its own parent.")
    try expect(
      (fields.kind == .full) == (parent == nil), "A full image has no parent and an increment has one; here it is not so.")
    try expect(Self.supports(pageSize: fields.pageSize), "Pages of \(fields.pageSize) bytes are impossible.")
    try expect(
      fields.pageCount > 0 && !fields.pageCount.multipliedReportingOverflow(by: fields.pageSize).overflow,
      "\(fields.pageCount) pages of \(fields.pageSize) bytes are impossible.")
    try expect(
      fields.blockSize == ImageBlocks.size,
      "Blocks of \(fields.blockSize) bytes are impossible in version \(Self.version).")
    pageSize = fields.pageSize
    pageCount = fields.pageCount
    backing = fields.backing
    guard let runs = PageRunText.read(fields.pages, pageCount: fields.pageCount) else {
      throw Refusal(text: "The list of stored pages is out of order, overlaps, or leaves the \(fields.pageCount) pages.")
    }
    pages = DirtySet(pageCount: fields.pageCount)
    for run in runs { pages.append(run) }
    try expect(
      fields.kind == .increment || runs == [0..<fields.pageCount],
      "A full image stores every page, and this one stores \(pages.count) of \(fields.pageCount).")
    let blocks = ImageBlocks.count(pages: pages.count, pageSize: pageSize)
    try expect(
      fields.checksums.count == blocks,
      "There are \(fields.checksums.count) checksums for \(blocks) blocks.")
    checksums = fields.checksums.compactMap { Checksum($0) }
    try expect(checksums.count == blocks, "A checksum is not 32 hexadecimal digits.")
  }

  private static var encoder: JSONEncoder {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return encoder
  }
}

/// Runs of pages as text that takes little room: `0-1023,2048,4096-4099`, first and last page of each.
enum PageRunText {
  static func text(_ runs: [Range<Int>]) -> String {
    var text = ""
    for run in runs {
      if !text.isEmpty { text += "," }
      text += run.count == 1 ? "\(run.lowerBound)" : "\(run.lowerBound)-\(run.upperBound - 1)"
    }
    return text
  }

  /// `nil` unless the runs are ascending, disjoint, not adjacent, and inside `0 ..< pageCount`.
  static func read(_ text: String, pageCount: Int) -> [Range<Int>]? {
    var runs: [Range<Int>] = []
    var text = text
    return text.withUTF8 { bytes -> [Range<Int>]? in
      var at = 0
      func number() -> Int? {
        var value = 0
        let first = at
        while at < bytes.count, case let digit = Int(unsafe bytes[at]) - 48, (0...9).contains(digit) {
          guard at - first < 18 else { return nil }
          value = value * 10 + digit
          at += 1
        }
        return at == first ? nil : value
      }
      while at < bytes.count {
        guard let first = number() else { return nil }
        var last = first
        if at < bytes.count, unsafe bytes[at] == UInt8(ascii: "-") {
          at += 1
          guard let end = number() else { return nil }
          last = end
        }
        guard first <= last, last < pageCount, runs.last.map({ $0.upperBound < first }) ?? true else { return nil }
        runs.append(first..<last + 1)
        guard at < bytes.count else { break }
        guard unsafe bytes[at] == UInt8(ascii: ","), at + 1 < bytes.count else { return nil }
        at += 1
      }
      return runs
    }
  }
}
