import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Stores of the API into adopted memory, which the kernel makes.
@Suite("Stores into adopted memory") struct AdoptedStoreTests {
  private static let pages = 4

  /// The kernel may not take hold of the target before it has the source: here that comes from a store, while the target is protected again.
  @Test("W5: a copy whose source is late is in the next set", arguments: Mechanisms.all)
  func collections(_ mechanism: WriteTracking.Mechanism) throws {
    let start = unsafe mmap(nil, Self.pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    try #require(unsafe start != MAP_FAILED)
    defer { unsafe munmap(start, Self.pages * 4096) }
    let space = try AddressSpace.forTests()
    let region = try space.adopt(AddressRange(start: UInt(bitPattern: start), count: Self.pages * 4096))
    for page in 0..<Self.pages { try region.store(UInt64(1), toByteOffset: page * 4096) }
    let isReading = Atomic(false)
    let mayRead = Atomic(false)
    let store = UnrulyStore(pages: 1)
    store.set {
      $0.isQuick = false
      $0.reading = { _ throws(PinError) in
        isReading.store(true, ordering: .releasing)
        while !mayRead.load(ordering: .acquiring) { sched_yield() }
      }
    }
    let source = try space.map(.file(store), pages: 1)
    let tracker = try region.trackWrites(mechanism)
    let from = source.addresses.start
    let thread = HostThread { [region] in
      try? unsafe region.copy(
        UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: from), count: 4096), toByteOffset: 4096)
    }
    while !isReading.load(ordering: .acquiring) { sched_yield() }
    let before = try tracker.collect()
    mayRead.store(true, ordering: .releasing)
    thread.join()
    let word: UInt64 = try region.load(fromByteOffset: 4096)
    #expect(word != 1)
    #expect(try tracker.collect().contains(1), "the copy arrived after a collection that had \(before.runs)")
    try tracker.stop()
    try space.close()
  }
}
