import ArgumentParser
import Foundation
import Testing

@testable import PinKit
@testable import Reports
@testable import pinctl

/// A full image and two increments of 600 pages, written as a snapshot would write them.
private final class Images: Sendable {
  private struct Source: ImageSource {
    let pageSize = 4096
    let pageCount = 600
    let identity = SnapshotIdentity()
    let parent: SnapshotIdentity?
    let backing = "anonymous"
    let runs: [Range<Int>]
    let fill: UInt8
    func copy(pages: Range<Int>, into target: UnsafeMutableRawBufferPointer) {
      for index in target.indices { unsafe target[index] = fill }
    }
  }

  let directory: String
  let names = ["full", "first", "second"]
  var paths: [String] { names.map { "\(directory)/\($0)" } }
  /// Page 5 and 6 belong to the first increment, 6 and 7 to the second, which made them zeros.
  static var expected: [UInt8] {
    var pages = [UInt8](repeating: 1, count: 600)
    (pages[5], pages[6], pages[7]) = (2, 0, 0)
    return pages.flatMap { [UInt8](repeating: $0, count: 4096) }
  }

  init() throws {
    directory = NSTemporaryDirectory() + "pinkit-pinctl-\(UInt64.random(in: .min ... .max))"
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
    let full = Source(parent: nil, runs: [0..<600], fill: 1)
    let first = Source(parent: full.identity, runs: [5..<7], fill: 2)
    let second = Source(parent: first.identity, runs: [6..<8], fill: 0)
    for (path, source) in zip(paths, [full, first, second]) { _ = try ImageWriter.write(source, to: path) }
  }

  deinit { try? FileManager.default.removeItem(atPath: directory) }

  func damage(_ name: String) throws {
    let file = try #require(FileHandle(forUpdatingAtPath: "\(directory)/\(name)"))
    try file.seek(toOffset: 6 * 4096)
    try file.write(contentsOf: [0x77])
    try file.close()
  }
}

@Suite("pinctl image") struct ImageTests {
  private let images: Images
  init() throws { images = try Images() }

  /// What the command prints when it succeeds.
  private func output(_ arguments: [String]) async throws -> String {
    let joined = arguments.joined(separator: "\n")
    let result = try await #require(processExitsWith: .exitCode(0), observing: [\.standardOutputContent]) {
      [joined = joined as String] in
      Pinctl.main(joined.split(separator: "\n").map(String.init))
    }
    return String(decoding: result.standardOutputContent, as: UTF8.self)
  }

  /// What the command complains of when it fails.
  private func complaint(_ arguments: [String], sourceLocation: SourceLocation = #_sourceLocation) async throws -> String {
    let joined = arguments.joined(separator: "\n")
    let result = try await #require(
      processExitsWith: .exitCode(1), observing: [\.standardErrorContent], sourceLocation: sourceLocation
    ) {
      [joined = joined as String] in
      Pinctl.main(joined.split(separator: "\n").map(String.init))
    }
    return String(decoding: result.standardErrorContent, as: UTF8.self)
  }

  @Test("info says what the header says, as text and as JSON") func info() async throws {
    let text = try await output(["image", "info"] + images.paths)
    let full = try SnapshotImage(path: images.paths[0])
    #expect(text.contains("increment of \(full.identity)"))
    #expect(text.contains("600 pages of 4096 bytes, 2457600 bytes"))
    #expect(text.contains("2 pages in 1 run\n"))
    let json = try await output(["image", "info", "--json"] + images.paths)
    let start = try #require(json.firstIndex(of: "["))
    let reports = try JSONDecoder().decode([ImageReport].self, from: Data(json[start...].utf8))
    #expect(reports == (try images.paths.map { try ImageReport(SnapshotImage(path: $0)) }))
    #expect(reports.map(\.kind) == ["full", "increment", "increment"])
    #expect(reports[1].parent == reports[0].identity)
    #expect(reports[2].allocatedBytes == 0, "its pages are zeros")
  }

  @Test("verify exits with 0, and with 1 naming file, block and checksums") func verify() async throws {
    #expect(try await output(["image", "verify"] + images.paths).contains("all 600 stored pages"))
    try images.damage("first")
    let text = try await complaint(["image", "verify"] + images.paths)
    #expect(text.contains("verify \(images.paths[1]): image is corrupt"))
    #expect(text.contains("Block 0, 2 pages from 5 to 6") && text.contains("was expected"))
    #expect(try await complaint(["image", "verify", images.directory + "/none"]).contains("There is no image"))
  }

  @Test("restore writes what the last image held") func restore() async throws {
    let file = images.directory + "/raw"
    _ = try await output(["image", "restore"] + images.paths + ["--to", file])
    let content = try Data(contentsOf: URL(fileURLWithPath: file))
    #expect(Array(content) == Images.expected)
    #expect(try await complaint(["image", "restore"] + images.paths + ["--to", file]).contains("already exists"))
    _ = try await output(["image", "restore", images.paths[0], "--replace", "--to", file])
    let replaced = try Data(contentsOf: URL(fileURLWithPath: file))
    #expect(Array(replaced) == [UInt8](repeating: 1, count: 600 * 4096))
  }

  @Test("restore refuses, and leaves no file") func refuses() async throws {
    let file = images.directory + "/raw"
    let paths = images.paths
    let wrong = try await complaint(["image", "restore", paths[0], paths[2], paths[1], "--to", file])
    #expect(wrong.contains("restore from \(paths[2]): images do not form a chain"))
    try images.damage("second")
    let corrupt = try await complaint(["image", "restore"] + paths + ["--to", file])
    #expect(corrupt.contains("verify \(paths[2]): image is corrupt"))
    let names = try FileManager.default.contentsOfDirectory(atPath: images.directory).sorted()
    #expect(names == (images.names + images.names.map { $0 + ".pinkit" }).sorted())
  }
}
