import Foundation
import Testing

@testable import PinKit

/// Headers with a right checksum and a wrong content: what a mistake in a writer, or malice, could make.
@Suite("Image headers") struct ImageHeaderTests {
  private static let id = SnapshotIdentity().description
  private static let sum = String(repeating: "0", count: 32)

  private static func header(_ changes: [String: Any?] = [:]) throws -> [UInt8] {
    var fields: [String: Any] = [
      "format": "pinkit-image", "version": 1, "kind": "full", "identity": id, "pageSize": 4096, "pageCount": 8,
      "backing": "anonymous", "pages": "0-7", "blockSize": 4 << 20, "checksums": [sum],
    ]
    for (key, value) in changes { fields[key] = value }
    return ImageHeader.sealed(Array(try JSONSerialization.data(withJSONObject: fields)))
  }

  private func read(_ bytes: [UInt8]) throws -> ImageHeader { try ImageHeader(bytes, path: "some.pinkit") }

  @Test("what is written is read again") func roundTrip() throws {
    let full = try read(try Self.header())
    #expect(full.identity.description == Self.id && full.kind == .full && full.pages.runs == [0..<8])
    #expect(try read(full.encoded()) == full)
    let increment = try read(
      try Self.header([
        "kind": "increment", "parent": SnapshotIdentity().description, "pages": "0,2-3,7", "backing": "\n\"\u{1}",
      ]))
    #expect(increment.pages.runs == [0..<1, 2..<4, 7..<8])
    #expect(try read(increment.encoded()) == increment)
    let lines = try increment.encoded().split(separator: 10)
    #expect(lines.count == 2)
    for line in lines { #expect(throws: Never.self) { try JSONSerialization.jsonObject(with: Data(line)) } }
  }

  @Test(
    "impossible fields are refused",
    arguments: [
      ("format", "raw"), ("kind", "partial"), ("kind", "increment"), ("identity", "0"),
      ("identity", String(repeating: "G", count: 32)),
      ("parent", SnapshotIdentity().description), ("parent", "x"), ("pageSize", "4096"), ("pages", "0-6"), ("pages", ""),
      ("pages", "0-3,4-7"), ("pages", "7-0"), ("pages", "0-8"), ("pages", "-1-7"), ("pages", "0-7,"), ("pages", ","),
      ("pages", "0-99999999999999999999999"), ("pages", "0--7"), ("pages", "0 - 7"), ("checksums", "x"),
    ])
  func impossibleText(_ field: String, _ value: String) throws {
    let header = try Self.header([field: value])
    expect(.corruptImage, "some.pinkit") { _ = try read(header) }
  }

  @Test(
    "impossible numbers are refused",
    arguments: [
      ("pageSize", 0), ("pageSize", -4096), ("pageSize", 4095), ("pageSize", 2048), ("pageSize", 12288),
      ("pageSize", 8 << 20),
      ("pageSize", Int.max), ("pageCount", 0), ("pageCount", -8), ("pageCount", 9), ("pageCount", 7), ("pageCount", Int.max),
      ("pageCount", Int.min), ("blockSize", 0), ("blockSize", 4096), ("blockSize", -1),
    ])
  func impossibleNumbers(_ field: String, _ value: Int) throws {
    let header = try Self.header([field: value])
    expect(.corruptImage, "some.pinkit") { _ = try read(header) }
  }

  @Test(
    "runs of an increment that touch, overlap, go back or leave the region",
    arguments: ["0-3,4-7", "0-3,3-7", "2,2", "5,1", "7-8", "8"])
  func impossibleRuns(_ pages: String) throws {
    let header = try Self.header(["kind": "increment", "parent": SnapshotIdentity().description, "pages": pages])
    expect(.corruptImage, "list of stored pages") { _ = try read(header) }
  }

  @Test("the wrong checksums are refused") func checksums() throws {
    for list in [[], [Self.sum, Self.sum], ["0"], ["Z" + Self.sum.dropFirst()]] {
      expect(.corruptImage, "some.pinkit") { _ = try read(try Self.header(["checksums": list])) }
    }
    expect(.corruptImage) { _ = try read(try Self.header(["kind": "increment", "parent": Self.id])) }
    // A size that overflows, though each factor is possible.
    let huge: [String: Any] = ["pageCount": Int.max / 4096 + 1, "pages": "0-\(Int.max / 4096)", "pageSize": 4096]
    expect(.corruptImage) { _ = try read(try Self.header(huge)) }
    // As many checksums as no header could hold.
    expect(.corruptImage, "checksums") {
      _ = try read(try Self.header(["pageCount": 1 << 50, "pages": "0-\(1 << 50 - 1)"]))
    }
  }

  @Test("a later version is not corrupt, but unknown") func version() throws {
    expect(.unsupported, "version 2") { _ = try read(try Self.header(["version": 2, "kind": "other"])) }
  }

  @Test("text that is not what JSON should be") func text() {
    let lines = [
      "", "{", "[]", "null", "{}", "\"\"", "{\"format\":\"pinkit-image\",\"version\":1e400}",
      "{\"format\":\"pinkit-image\",\"version\":-1.5}", String(repeating: "[", count: 100_000),
      "{\"format\":\"pinkit-image\",\"version\":1,\"pageCount\":99999999999999999999}", "\u{feff}{}",
    ]
    for line in lines { expect(.corruptImage, "some.pinkit") { _ = try read(ImageHeader.sealed(Array(line.utf8))) } }
    expect(.corruptImage) { _ = try read([0xff, 0xfe, 10, 0xff, 10]) }
    expect(.corruptImage) { _ = try read(Array("\n\n".utf8)) }
  }

  @Test("random headers never trap") func random() throws {
    var generator = SystemRandomNumberGenerator()
    let good = try Self.header(["pages": "0-7"])
    let line = Array(good[..<good.firstIndex(of: 10)!])
    for _ in 0..<1_000 {
      var bytes = line
      for _ in 0..<Int.random(in: 1...6, using: &generator) {
        let at = bytes.indices.randomElement(using: &generator)!
        switch Int.random(in: 0..<3, using: &generator) {
        case 0: bytes[at] = .random(in: 32..<127, using: &generator)
        case 1: bytes.remove(at: at)
        default: bytes.insert(Array("0123456789-,\"{}[]".utf8).randomElement(using: &generator)!, at: at)
        }
      }
      if let header = try? read(ImageHeader.sealed(bytes)) {
        #expect(header.byteCount > 0)
        #expect(header.checksums.count == ImageBlocks.count(pages: header.pages.count, pageSize: header.pageSize))
      }
    }
  }
}
