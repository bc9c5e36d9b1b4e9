import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// While page tables are given back nobody can bring a page in but the thread that does it, so that thread waits for nobody.
@Suite("Page tables that are given back") struct TablesBackTests {
  private static let pages = (256 << 20) / 4096
  private static let isHolding = Atomic<Bool>(false)
  private static let untouched = Atomic<UInt64>(0)
  private static let handled = Atomic<Int>(0)

  /// A region whose page tables are full of marks, and what is in it.
  private static func marked(_ space: AddressSpace) throws -> Region {
    let region = try space.map(.anonymous(hugePages: .never), pages: pages)
    for page in stride(from: 0, to: pages, by: pages / 8) { try region.setByte(7, page) }
    try region.snapshot().close()
    return region
  }

  private static func checkBytes(_ region: Region) throws {
    for page in stride(from: 0, to: pages, by: pages / 8) { try check(region.byte(page), is: 7) }
  }

  @Test("K5: a signal handler that touches the region while its page tables are given back does not wait for its own thread")
  func signals() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      let region = try Self.marked(space)
      Self.untouched.store(UInt64(region.addresses.start) + 77 * 4096, ordering: .relaxed)
      _ = signal(SIGUSR1) { _ in
        ct_store(Self.untouched.load(ordering: .relaxed), 9)
        Self.handled.add(1, ordering: .relaxed)
      }
      TestHooks.set(.holdingMissing) { if $0 == 0 { pthread_kill(pthread_self(), SIGUSR1) } }
      HostThread { do { try region.endSnapshots() } catch { check(false, "\(error)") } }.join()
      TestHooks.set(.holdingMissing, nil)
      check(Self.handled.load(ordering: .relaxed), is: 1)
      try check(region.byte(77), is: 9)
      try Self.checkBytes(region)
      try space.close()
    }
  }

  @Test(
    "K5: giving page tables back allocates nothing while the program's heap may be out of reach",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has an allocator of its own"))
  func allocations() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      TestHooks.set(.holdingMissing) { Self.isHolding.store($0 == 0, ordering: .sequentiallyConsistent) }
      ct_watch_allocations { Self.isHolding.load(ordering: .sequentiallyConsistent) ? 1 : 0 }
      // The first time the runtime makes what it knows of types, in a build without optimization.
      try Self.marked(space).endSnapshots()
      let region = try Self.marked(space)
      let before = ct_watched_allocations()
      try region.endSnapshots()
      let after = ct_watched_allocations()
      // The second hook begins while the first one's answer counts.
      Self.isHolding.store(true, ordering: .sequentiallyConsistent)
      TestHooks.reach(.holdingMissing, page: 1)
      check(after - before, is: ct_watched_allocations() - after)
      ct_watch_allocations { 0 }
      TestHooks.set(.holdingMissing, nil)
      try Self.checkBytes(region)
      try space.close()
    }
  }
}
