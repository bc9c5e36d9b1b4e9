import CTestSupport
import Foundation
import Testing

@testable import PinKit

@Suite("Images") struct ImageRoundTripTests {
  private let directory: ImageDirectory
  init() throws { directory = try ImageDirectory() }

  @Test("a full image holds every page at its place, zeros as holes, and verifies") func full() throws {
    // Blocks of data, of zeros, of both, and a last one that is not full.
    let source = ArraySource(pages: 4 * 1024 + 100, zeros: [10..<11, 900..<2100, 2200..<2201, 3000..<3072, 4000..<4196])
    let path = directory("full")
    let written = try ImageWriter.write(source, to: path)
    let read = try SnapshotImage(path: path)
    #expect(read == written)
    #expect(read.identity == source.identity)
    #expect(read.parent == nil && read.kind == .full)
    #expect(read.pageSize == 4096 && read.pageCount == source.pageCount && read.byteCount == source.bytes.count)
    #expect(read.backing == "an array")
    #expect(read.storedPages.runs == [0..<source.pageCount])
    #expect(try RawFile.read(path) == source.bytes)
    try read.verify()
    let dataPages = source.pageCount - 1 - 1200 - 1 - 72 - 196
    #expect(try read.allocatedBytes() < (dataPages + 16) * 4096)
    #expect(try read.allocatedBytes() >= dataPages * 4096)
    #expect(directory.names == ["full", "full.pinkit"])
    for name in directory.names {
      let mode = try FileManager.default.attributesOfItem(atPath: directory(name))[.posixPermissions] as? Int
      #expect(mode == 0o600, "memory is nobody else's to read")
    }
  }

  @Test("checksums are XXH3-128 of blocks of 4 MiB of the stored bytes, zeros included")
  func checksums() throws {
    let full = ArraySource(pages: 1024 + 512, zeros: [0..<1024])
    let first = try ImageWriter.write(full, to: directory("full")).header.checksums
    #expect(first.count == 2)
    let expected = [Array(full.bytes[0..<4 << 20]), Array(full.bytes[(4 << 20)...])].map { block in
      unsafe block.withUnsafeBytes { unsafe Checksum(of: $0) }
    }
    #expect(first == expected)
    // The hash of nothing, as the algorithm's own test vectors have it.
    let nothing = unsafe Checksum(of: UnsafeRawBufferPointer(start: nil, count: 0))
    #expect(nothing.description == "99aa06d3014798d86001c324468d497f")
  }

  @Test("a chain restores, byte for byte, what the last source held", arguments: [0, 1, 2, 3])
  func chain(_ increments: Int) throws {
    var source = ArraySource(pages: 3000, zeros: [100..<200, 2000..<2900])
    var chain = [try ImageWriter.write(source, to: directory("0"))]
    let changes: [([Range<Int>], [Range<Int>])] = [
      ([5..<6, 150..<160, 1020..<1030, 2999..<3000], [300..<700, 800..<801]),
      ([0..<1, 350..<360, 2000..<2500], [5..<6, 2999..<3000]), ([], []),
    ]
    for index in 0..<increments {
      source = source.changed(changes[index].0, zeros: changes[index].1, seed: UInt64(index) + 7)
      chain.append(try ImageWriter.write(source, to: directory("\(index + 1)")))
      #expect(chain[index + 1].kind == .increment)
      #expect(chain[index + 1].storedPages.runs == source.runs)
    }
    for image in chain { try SnapshotImage(path: image.path).verify() }
    try SnapshotImage.compose(chain, to: directory("raw"))
    #expect(try RawFile.read(directory("raw")) == source.bytes)

    let space = try AddressSpace.forTests()
    for backing in [Backing.anonymous, .pool] {
      let region = try space.map(backing, pages: 3000)
      try region.fill(with: 0xee)
      try region.restore(from: chain)
      #expect(try region.content == source.bytes)
      // And once more over itself, by the paths.
      if increments == 0 {
        try region.restore(from: directory("0"))
        #expect(try region.content == source.bytes)
      }
    }
    try space.close()
  }

  @Test("a tracker of the restored region reports the pages that were written", arguments: Mechanisms.all)
  func tracked(_ mechanism: WriteTracking.Mechanism) throws {
    let source = ArraySource(pages: 256, zeros: [3..<4, 64..<128])
    let image = try ImageWriter.write(source, to: directory("image"))
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 256)
    try region.fill(with: 1)
    try region.store(UInt8(0), toByteOffset: 3 * 4096)
    let tracker = try region.trackWrites(mechanism)
    _ = try tracker.collect()
    try region.restore(from: [image])
    #expect(try region.content == source.bytes)
    // Page 3 held zeros already and was left alone.
    #expect(try tracker.collect().runs == [0..<3, 4..<256])
    try space.close()
  }

  @Test("an increment of no pages, and a region of one page") func smallest() throws {
    let source = ArraySource(pages: 1)
    let full = try ImageWriter.write(source, to: directory("full"))
    let none = try ImageWriter.write(source.changed([]), to: directory("none"))
    #expect(none.storedPages.isEmpty && none.kind == .increment)
    try none.verify()
    try SnapshotImage.compose([full, none], to: directory("raw"))
    #expect(try RawFile.read(directory("raw")) == source.bytes)
  }

  @Test("single pages all over a region, and huge pages") func shapes() throws {
    let scattered = ArraySource(pages: 4096, zeros: (0..<2048).map { $0 * 2..<$0 * 2 + 1 })
    let full = try ImageWriter.write(scattered, to: directory("scattered"))
    try full.verify()
    #expect(try full.allocatedBytes() < 2100 * 4096)
    let every = scattered.changed((0..<2000).map { $0 * 2 + 1..<$0 * 2 + 2 })
    let increment = try ImageWriter.write(every, to: directory("every"))
    try SnapshotImage.compose([full, increment], to: directory("raw"))
    #expect(try RawFile.read(directory("raw")) == every.bytes)

    let huge = ArraySource(pages: 5, zeros: [1..<2], pageSize: 2 << 20)
    let image = try ImageWriter.write(huge, to: directory("huge"))
    try image.verify()
    #expect(image.header.checksums.count == 3)
    #expect(try RawFile.read(image.path) == huge.bytes)
  }

  @Test("progress counts every page once and begins at none") func progress() throws {
    let source = ArraySource(pages: 2500, zeros: [0..<1000])
    var seen: [ImageProgress] = []
    let image = try ImageWriter.write(source, to: directory("image")) {
      seen.append($0); return .proceed
    }
    #expect(seen.first == ImageProgress(pagesDone: 0, pagesTotal: 2500, bytesTransferred: 0))
    #expect(seen.last == ImageProgress(pagesDone: 2500, pagesTotal: 2500, bytesTransferred: 1500 * 4096))
    #expect(zip(seen, seen.dropFirst()).allSatisfy { $0.pagesDone <= $1.pagesDone })
    seen = []
    try image.verify {
      seen.append($0); return .proceed
    }
    #expect(seen.map(\.pagesDone) == [0, 1024, 2048, 2500])
    #expect(seen.last?.bytesTransferred == 1500 * 4096)
    seen = []
    try SnapshotImage.compose([image], to: directory("raw")) {
      seen.append($0); return .proceed
    }
    #expect(seen.last == ImageProgress(pagesDone: 5000, pagesTotal: 5000, bytesTransferred: 3000 * 4096))
  }

  @Test("without io_uring the same images come about, one call after the other") func withoutRing() async {
    await #expect(processExitsWith: .success) {
      let directory = try ImageDirectory()
      let source = ArraySource(pages: 1500, zeros: [3..<40])
      check(ct_forbid_io_uring(), is: 0)
      check((try? SubmissionRing(entries: 1)) == nil, "there is no ring")
      let written = try ImageWriter.write(source, to: directory("image"))
      try written.verify()
      try check(RawFile.read(directory("image")) == source.bytes, "the same bytes")
      try SnapshotImage.compose([written], to: directory("raw"))
      try check(RawFile.read(directory("raw")) == source.bytes, "the same bytes, restored")
    }
  }
}
