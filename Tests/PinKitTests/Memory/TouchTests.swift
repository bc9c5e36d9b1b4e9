import Synchronization
import Testing

@testable import PinKit

@Suite("Touching pages", .serialized) struct TouchTests {
  @Test("N1: a touch is the fault of a store, and changes nothing", arguments: Combination.all)
  func touches(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    try combination.subject.with(space, pages: 4) { region in
      try region.fill(with: 0xa5)
      let tracker = try region.trackWrites(combination.mechanism)
      _ = try tracker.collect()
      try region.touch(2)
      #expect(try tracker.collect().runs == [2..<3])
      #expect(try region.load(fromByteOffset: 2 * region.pageSize, as: UInt8.self) == 0xa5)
      for page in [-1, 4, .max, .min] { #expect(code { try region.touch(page) } == .outOfBounds) }
      for access in [PageAccess.readOnly, .none] {
        try region.protect(1..<2, to: access)
        #expect(code { try region.touch(1) } == .accessDenied)
      }
      try region.protect(1..<2, to: .readWrite)
      #expect(try tracker.collect().isEmpty)
    }
    try space.close()
  }

  @Test("W5: what others write to a page that is touched stays") func touchesBesideWriters() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 1)
    let byte = region.addresses.start
    let counter = TestThread {
      // The touched byte is the lowest of the word.
      let word = unsafe UnsafeMutablePointer<Atomic<UInt64>>(bitPattern: byte)!
      for _ in 0..<200_000 { unsafe _ = word.pointee.add(1, ordering: .relaxed) }
    }
    while !counter.hasEnded { try region.touch(0) }
    try counter.join()
    #expect(try region.load(fromByteOffset: 0, as: UInt64.self) == 200_000)
    try space.close()
  }
}
