import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// A profiler whose handler writes pages of a store, in whatever a thread happens to do.
@Suite("Regions over a store in signal storms") struct FileSignalTests {
  private static let pages = 48

  @Test(
    "W5: writers, accesses, a flush and a reclaim are interrupted by a handler that touches pages; none waits for itself, nothing is lost",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals and has no child of fork()"),
    .enabled(
      if: ct_has_sanitizer() == 0, "a sanitizer's allocator has one lock for all threads, which a handler may wait with"),
    arguments: [true, false])
  func storm(isQuick: Bool) async {
    await #expect(processExitsWith: .success) { [isQuick = isQuick as Bool] in
      ct_deadline(60)
      let space = try AddressSpace()
      let store = UnrulyStore(pages: Self.pages) { _ in 0 }
      store.set {
        $0.isQuick = isQuick
        $0.writing = { _ throws(PinError) in Kernel.pause(nanoseconds: 200_000) }
        $0.reading = { _ throws(PinError) in Kernel.pause(nanoseconds: 50_000) }
        $0.granting = { _ throws(PinError) in Kernel.pause(nanoseconds: 20_000) }
      }
      let region = try space.map(.file(store, fillAround: .exact), pages: Self.pages)
      _ = ct_profile(UInt64(region.addresses.start), CInt(Self.pages), 4096)
      let last = (0..<2).map { _ in (0..<Self.pages).map { _ in Shared() } }
      let (flushes, reclaimed) = (Shared(), Shared())
      @Sendable func isEnough() -> Bool { ct_profile_count() >= 600 && flushes.value >= 15 && reclaimed.value >= 30 }
      func thread(_ body: @escaping @Sendable () throws -> Void) -> HostThread {
        HostThread {
          guard ct_profile_this_thread(200) == 0 else { exit(3) }
          do { while !isEnough() { try body() } } catch { Issue.record("\(error)") }
          ct_end_profile_of_this_thread()
        }
      }
      let next = Shared()
      let threads = [
        thread {
          let page = next.add() % Self.pages
          region.poke(UInt8(truncatingIfNeeded: last[0][page].add()), page, at: 100)
        },
        thread {
          // Checked: the calling thread brings the page in itself, and asks the store.
          let page = next.add() % Self.pages
          try region.setByte(UInt8(truncatingIfNeeded: last[1][page].add()), page, at: 200)
        },
        thread {
          try region.flush()
          flushes.add()
        },
        thread { reclaimed.add(try region.reclaim(0..<Self.pages)) },
      ]
      for thread in threads { thread.join() }
      try region.unmap()
      var counted: UInt64 = 0
      for page in 0..<Self.pages {
        for byte in 0..<4 { counted += UInt64(store.durableByte(page, at: 4092 + byte)) << UInt64(byte * 8) }
        check(store.durableByte(page, at: 100), is: UInt8(truncatingIfNeeded: last[0][page].value))
        check(store.durableByte(page, at: 200), is: UInt8(truncatingIfNeeded: last[1][page].value))
      }
      check(counted, is: ct_profile_count())
      try space.close()
    }
  }
}
