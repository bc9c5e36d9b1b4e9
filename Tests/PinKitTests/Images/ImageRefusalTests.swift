import Foundation
import Testing

@testable import PinKit

/// Three images, one on top of the other, of 2,100 pages: three blocks in the full one.
private struct Chain {
  let directory: ImageDirectory
  let sources: [ArraySource]
  let images: [SnapshotImage]

  init() throws {
    directory = try ImageDirectory()
    let full = ArraySource(pages: 2100, zeros: [50..<60, 2000..<2010])
    let first = full.changed([7..<9, 1500..<1600], zeros: [20..<30])
    sources = [full, first, first.changed([8..<10])]
    var images: [SnapshotImage] = []
    for (index, source) in sources.enumerated() { images.append(try ImageWriter.write(source, to: directory("\(index)"))) }
    self.images = images
  }

  var paths: [String] { images.map(\.path) }

  /// Restores into a region that must not have changed when it fails.
  func restore(_ paths: [String], pages: Int = 2100, backing: Backing = .anonymous) throws {
    let space = try AddressSpace.forTests()
    defer { try? space.close() }
    let region = try space.map(backing, pages: pages)
    try region.fill(with: 0x5a)
    let before = try region.content
    do {
      try region.restore(from: try paths.map { try SnapshotImage(path: $0) })
    } catch {
      #expect(try region.content == before, "nothing may change before everything is verified")
      throw error
    }
    #expect(try region.content == sources[paths.count - 1].bytes)
  }
}

@Suite("Images that are refused") struct ImageRefusalTests {
  private let chain: Chain
  init() throws { chain = try Chain() }
  private var paths: [String] { chain.paths }

  @Test("the chain as it was made restores") func works() throws { try chain.restore(paths) }

  @Test("one flipped bit in any block of any image", arguments: [0, 1, 2])
  func flippedData(_ index: Int) throws {
    let image = chain.images[index]
    for page in [image.storedPages.runs[0].lowerBound, image.storedPages.runs.last!.upperBound - 1] {
      let offset = page * 4096 + 1234
      try RawFile.flip(image.path, at: offset)
      let block = index == 0 ? page / 1024 : 0
      expect(.corruptImage, image.path, "Block \(block)", "was expected") { try chain.restore(paths) }
      expect(.corruptImage, image.path) { try image.verify() }
      expect(.corruptImage, image.path) { try SnapshotImage.compose(chain.images, to: chain.directory("raw")) }
      #expect(!chain.directory.names.contains { $0.hasPrefix("raw") })
      try RawFile.flip(image.path, at: offset)
    }
    try chain.restore(paths)
  }

  @Test("a byte in a hole, and a hole in the bytes") func holes() throws {
    try RawFile.edit(paths[0]) { file in
      try file.seek(toOffset: 2005 * 4096)
      try file.write(contentsOf: [1])
    }
    expect(.corruptImage, paths[0], "Block 1, 1024 pages from 1024 to 2047") { try chain.restore(paths) }
    try RawFile.punch(paths[0], 2005 * 4096..<2006 * 4096)
    try chain.restore(paths)
    try RawFile.punch(paths[0], 1500 * 4096..<1501 * 4096)
    expect(.corruptImage, paths[0], "Block 1") { try chain.restore(paths) }
  }

  @Test("an image that is all holes now says so") func allHoles() throws {
    try RawFile.punch(paths[2], 8 * 4096..<10 * 4096)
    expect(.corruptImage, paths[2], "Block 0", "from 8 to 9", "hole") { try chain.restore(paths) }
  }

  @Test("a flipped bit in any byte of a header") func flippedHeader() throws {
    let header = paths[1] + ".pinkit"
    let good = try RawFile.read(header)
    for offset in good.indices {
      var bad = good
      bad[offset] ^= 0x04
      do {
        _ = try ImageHeader(bad, path: header)
        Issue.record("byte \(offset) may be anything")
      } catch {
        #expect(error.code == .corruptImage && error.description.contains(header), "\(error)")
      }
    }
    try RawFile.flip(header, at: good.count / 2)
    expect(.corruptImage, header, "checksum") { try chain.restore(paths) }
  }

  @Test("a header cut off anywhere, or added to") func truncatedHeader() throws {
    let header = paths[1] + ".pinkit"
    let good = try RawFile.read(header)
    for count in good.indices {
      #expect(throws: PinError.self, "the first \(count) bytes") { try ImageHeader(Array(good[..<count]), path: header) }
    }
    #expect(throws: PinError.self) { try ImageHeader(good + good, path: header) }
    try RawFile.edit(header) { try $0.truncate(atOffset: UInt64(good.count / 2)) }
    expect(.corruptImage, header, "cut off") { try chain.restore(paths) }
    try RawFile.write([], header)
    expect(.corruptImage, header) { try chain.restore(paths) }
  }

  @Test("a file that is shorter or longer than the region") func truncatedData() throws {
    for size in [2099 * 4096, 2100 * 4096 - 1, 0, 2101 * 4096] {
      try RawFile.edit(paths[0]) { try $0.truncate(atOffset: UInt64(size)) }
      expect(.corruptImage, paths[0], "\(size) bytes", "\(2100 * 4096) were expected") { try chain.restore(paths) }
      expect(.corruptImage, paths[0], "\(size) bytes") { try chain.images[0].verify() }
    }
  }

  @Test("images out of order, left out, named twice, or of another chain") func order() throws {
    expect(.brokenChain, paths[2], "behind \(paths[0])", "increment of \(paths[1])") {
      try chain.restore([paths[0], paths[2], paths[1]])
    }
    expect(.brokenChain, paths[2], "image \(chain.sources[1].identity), which was not named") {
      try chain.restore([paths[0], paths[2]])
    }
    expect(.brokenChain, paths[1], "A full image comes first") { try chain.restore([paths[1], paths[2]]) }
    expect(.brokenChain, paths[1], "increment of \(paths[0])") { try chain.restore([paths[1], paths[0]]) }
    expect(.brokenChain, paths[0], "once") { try chain.restore([paths[0], paths[0]]) }
    expect(.brokenChain, paths[1], "once") { try chain.restore([paths[0], paths[1], paths[1]]) }
    let other = ArraySource(pages: 2100, seed: 9)
    let foreign = try ImageWriter.write(other, to: chain.directory("other"))
    expect(.brokenChain, foreign.path, "second full image") { try chain.restore([paths[0], foreign.path]) }
    let child = try ImageWriter.write(other.changed([4..<5]), to: chain.directory("child"))
    expect(.brokenChain, child.path, "\(other.identity), which was not named") { try chain.restore([paths[0], child.path]) }
    expect(.brokenChain, "no image") { try chain.restore([]) }
  }

  @Test("another page size or number of pages") func geometry() throws {
    expect(.geometryMismatch, paths[0], "2100 pages", "2101 of 4096") { try chain.restore(paths, pages: 2101) }
    var small = chain.sources[0].changed([3..<4])
    small.pageCount = 2099
    let smaller = try ImageWriter.write(small, to: chain.directory("smaller"))
    expect(.geometryMismatch, smaller.path, "2099 pages", paths[0]) { try chain.restore([paths[0], smaller.path]) }
    let wide = try ImageWriter.write(ArraySource(pages: 1050, pageSize: 8192), to: chain.directory("wide"))
    expect(.geometryMismatch, wide.path, "8192 bytes") { try chain.restore([wide.path]) }
  }

  @Test("what is not there, or is no image") func missing() throws {
    expect(.notFound, "nothing.pinkit", "no image") { _ = try SnapshotImage(path: chain.directory("nothing")) }
    try FileManager.default.removeItem(atPath: paths[1])
    expect(.notFound, paths[1], "only its header") { try chain.restore(paths) }
    try FileManager.default.removeItem(atPath: paths[2] + ".pinkit")
    expect(.notFound, paths[2], "no image") { try chain.restore([paths[0], paths[2]]) }
    try FileManager.default.createDirectory(atPath: paths[1], withIntermediateDirectories: false)
    #expect(throws: PinError.self) { try SnapshotImage(path: paths[1]) }
    #expect(unsafe mkfifo(paths[2] + ".pinkit", 0o600) == 0)
    expect(.corruptImage, "no plain file") { _ = try SnapshotImage(path: paths[2]) }
    for path in ["", "a\0b"] { expect(.invalidArgument) { _ = try SnapshotImage(path: path) } }
  }

  @Test("an image that changes between the two passes is noticed, and the region is said to be a mixture")
  func changesUnderneath() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 2100)
    var calls = 0
    // Three blocks of the first image and one of the others are verified; then the second block changes.
    expect(.corruptImage, paths[0], "Block 2", "mixture") {
      try region.restore(from: chain.images) { _ in
        calls += 1
        if calls == 6 { try? RawFile.flip(paths[0], at: 2099 * 4096) }
        return .proceed
      }
    }
    #expect(calls > 6)
    try space.close()
  }

  @Test("a region whose pages may not be written stays as it is") func denied() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 2100)
    try region.fill(with: 3)
    try region.protect(2000..<2001, to: .readOnly)
    let before = try region.content
    expect(.accessDenied, "page 2000") { try region.restore(from: chain.images) }
    #expect(try region.content == before)
    try region.unmap()
    expect(.unmapped) { try region.restore(from: chain.images) }
    try space.close()
  }

  @Test("cancelling changes nothing before the first byte, and is ignored from then on") func cancelled() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 2100)
    try region.fill(with: 3)
    let before = try region.content
    for limit in 1...6 {
      var calls = 0
      expect(.cancelled) {
        try region.restore(from: chain.images) { _ in
          calls += 1
          return calls == limit ? .cancel : .proceed
        }
      }
      #expect(try region.content == before)
    }
    var calls = 0
    try region.restore(from: chain.images) { _ in
      calls += 1
      return calls > 6 ? .cancel : .proceed
    }
    #expect(try region.content == chain.sources[2].bytes)
    try space.close()
  }
}
