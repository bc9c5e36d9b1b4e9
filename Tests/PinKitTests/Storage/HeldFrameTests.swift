import CTestSupport
import Glibc
import Testing

@testable import PinKit

@Suite("Frames of a store's pages that others have, and a store that is never idle") struct HeldFrameTests {
  @Test("P5: a clean page that other code drops keeps its frame where a clone, or a lookup, has it, too")
  func dropped() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.file(UnrulyStore(pages: 4), fillAround: .exact), pages: 4)
    for page in 0..<4 { _ = region.peek(page) }
    let reference = try region.lookUp(3)
    let clone = try region.clone()
    let range = try region.addresses(of: 0..<4)
    #expect(unsafe madvise(UnsafeMutableRawPointer(bitPattern: range.start), range.count, MADV_DONTNEED) == 0)
    // The call returns when the message was read, and a reader notes it after that.
    #expect(spin { (try? region.filePageState(1).isPresent) == false })
    // A page that nobody else has would be a hole of the pool's for a moment, and what others have in it zeros.
    let holes = Shared()
    TestHooks.set(.punched) { page in if (0..<4).contains(page) { _ = holes.add() } }
    defer { TestHooks.set(.punched, nil) }
    for page in 0..<4 { #expect(region.peek(page) == UInt8(page + 1)) }
    for page in 0..<4 { #expect(clone.peek(page) == UInt8(page + 1), "page \(page) of the clone") }
    for page in 0..<4 { #expect(try clone.frameState(page).frame == region.frameState(page).frame) }
    #expect(holes.value == 0)
    _ = consume reference
    try clone.unmap()
    try space.close()
  }

  @Test("A flush before the region goes does not wait for requests that began after it", .timeLimit(.minutes(60)))
  func neverIdle() throws {
    let space = try AddressSpace.forTests()
    let count = 16_384
    let begun = Shared()
    let stop = Shared()
    let store = UnrulyStore(pages: count)
    // There is always one at the store: each ends when another has begun.
    store.set {
      $0.isQuick = false
      $0.reading = { _ throws(PinError) in
        let mine = begun.add()
        while mine < count, begun.value == mine, stop.value == 0 { sched_yield() }
      }
    }
    let region = try space.map(.file(store, fillAround: .exact), pages: count)
    let threads = (0..<2).map { first in
      TestThread { for page in stride(from: first, to: count, by: 2) where stop.value == 0 { _ = region.peek(page) } }
    }
    #expect(spin { begun.value > 2 })
    try region.flushSupply()
    #expect(begun.value < count)
    stop.value = 1
    for thread in threads { try thread.join() }
    try region.unmap()
    try space.close()
  }
}
