import Synchronization
import Testing

@testable import PinKit

@Suite("Counting frames") struct FrameCountTests {
  @Test("W2: a frame of two never looks like a frame of one while other regions come and go")
  func counts() throws {
    let space = try AddressSpace.forTests()
    let extent = UInt(bitPattern: unsafe try space.framePool().makeExtent(pageCount: 8))
    // Two regions map frame 3; a third has the extent as its base and has left that frame.
    unsafe Extent.Pointer(bitPattern: extent)!.pointee.isShared.store(true, ordering: .relaxed)
    for _ in 0..<3 { unsafe Extent.Pointer(bitPattern: extent)!.pointee.addMapper(1) }
    unsafe Extent.Pointer(bitPattern: extent)!.pointee.removeMapping(3)
    let isOver = Atomic<Bool>(false)
    unsafe try withUnsafePointer(to: isOver) { flag in
      let address = UInt(bitPattern: flag)
      let comers = (0..<2).map { _ in
        TestThread {
          let extent = unsafe Extent.Pointer(bitPattern: extent)!
          let isOver = unsafe UnsafePointer<Atomic<Bool>>(bitPattern: address)!
          while unsafe !isOver.pointee.load(ordering: .relaxed) {
            unsafe extent.pointee.addMapper(1)
            unsafe extent.pointee.removeMapping(3)
            unsafe extent.pointee.addMapping(3)
            unsafe extent.pointee.addMapper(-1)
          }
        }
      }
      var fewest = Int.max
      for _ in 0..<2_000_000 { fewest = min(fewest, unsafe Extent.Pointer(bitPattern: extent)!.pointee.counts(3).mappings) }
      unsafe flag.pointee.store(true, ordering: .relaxed)
      for comer in comers { try comer.join() }
      #expect(fewest == 2)
    }
    #expect(unsafe Extent.Pointer(bitPattern: extent)!.pointee.counts(3).mappings == 2)
    try space.close()
  }
}
