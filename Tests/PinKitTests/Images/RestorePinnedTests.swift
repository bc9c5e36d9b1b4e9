import Testing

@testable import PinKit

@Suite("Restoring a region somebody has pinned pages of") struct RestorePinnedTests {
  @Test(
    "P4: a restore is refused while any page is pinned, names it, and changes no byte",
    arguments: [PinOptions.write.rawValue, 0], [false, true])
  func refused(_ options: PinOptions.RawValue, isPool: Bool) throws {
    let directory = try ImageDirectory()
    // Pages of bytes, and enough zeros to be discarded.
    let source = ArraySource(pages: 96, zeros: [40..<80])
    let image = try ImageWriter.write(source, to: directory("image"))
    let space = try AddressSpace.forTests()
    let region = try space.map(isPool ? .pool : .anonymous(hugePages: .never), pages: 96)
    try region.fill(with: 5)
    let before = try region.content
    for pages in [3..<5, 50..<51, 95..<96] {
      let pin = try region.pin(pages, PinOptions(rawValue: options))
      let tracker = try region.trackWrites(.handlerThread)
      _ = try tracker.collect()
      let names = pages.count == 1 ? "\(pages.lowerBound)" : "\(pages.lowerBound)...\(pages.upperBound - 1)"
      expect(.pinned, "Pages \(names) are pinned") { try region.restore(from: [image]) }
      #expect(try tracker.collect().runs == (options == 0 ? [] : [pages]), "nothing was written but what the pin may write")
      #expect(try region.content == before)
      pin.unpin()
      try tracker.stop()
    }
    try region.restore(from: [image])
    #expect(try region.content == source.bytes)
    try space.close()
  }
}
