import Foundation
import Testing

@testable import PinKit

/// The image that each release wrote, in a folder of its name: every later one reads it. `PINKIT_KEEP_IMAGE=NAME` makes the folder of this one.
@Suite("Images of earlier releases") struct ReleasedImageTests {
  private static let folder = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "Released")
  static let releases = ((try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []).sorted()
  private static let pageCount = 8

  /// What the region holds after each image of the chain: the words of a page, and a page of zeros.
  private static func word(_ page: Int, after image: Int) -> UInt64 {
    switch (page, image) {
    case (3, _): 0
    case (5, 1...): 0x5EC0_0001
    case (6...7, 2): 0x7410_0000 + UInt64(page)
    default: 0xF125_0000 + UInt64(page)
    }
  }

  private static func fill(_ region: Region, _ image: Int) throws {
    for page in 0..<pageCount where word(page, after: image) != 0 {
      for offset in stride(from: 0, to: 4096, by: 8) {
        try region.store(word(page, after: image) &+ UInt64(offset) << 32, toByteOffset: page * 4096 + offset)
      }
    }
  }

  @Test("Every release's image is verified and restored, whole and with its increments", arguments: releases, 1...3)
  func restores(_ release: String, _ count: Int) throws {
    try Self.restore(Self.folder.appending(path: release), count)
  }

  private static func restore(_ folder: URL, _ count: Int) throws {
    let paths = (0..<count).map { folder.appending(path: "\($0)").path }
    let space = try AddressSpace.forTests()
    let (region, expected) = (try space.map(.pool, pages: pageCount), try space.map(.pool, pages: pageCount))
    try region.fill(with: 0xee)
    let images = try paths.map { try SnapshotImage(path: $0) }
    for image in images { try image.verify() }
    try region.restore(from: images)
    try fill(expected, count - 1)
    #expect(try region.content == expected.content)
    try space.close()
  }

  @Test("There are some, and this version reads its own") func own() throws {
    #expect(!Self.releases.isEmpty)
    let directory = try ImageDirectory()
    let kept = ProcessInfo.processInfo.environment["PINKIT_KEEP_IMAGE"]
    let target = kept.map { Self.folder.appending(path: $0) } ?? URL(filePath: directory("own"))
    try FileManager.default.createDirectory(at: target, withIntermediateDirectories: true)
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: Self.pageCount)
    var before: Snapshot?
    for image in 0..<3 {
      try Self.fill(region, image)
      let snapshot = try region.snapshot()
      try snapshot.write(to: target.appending(path: "\(image)").path, since: before)
      before = snapshot
    }
    for count in 1...3 { try Self.restore(target, count) }
    try space.close()
  }
}
