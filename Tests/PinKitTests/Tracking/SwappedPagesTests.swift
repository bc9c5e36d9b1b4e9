import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// A file that the kernel swaps to.
enum SwapFile {
  static let isPossible = with { true } ?? false

  /// `nil` where there can be none.
  static func with<Result>(_ body: () throws -> Result) rethrows -> Result? {
    let path = "/var/tmp/pinkit-swap-\(getpid())"
    guard unsafe ct_swap_on(path, 16 << 20) == 0 else { return nil }
    defer { _ = unsafe ct_swap_off(path) }
    return try body()
  }
}

/// Collections of pages that the kernel has swapped out: they are marked once more, and that may have to be tried again.
@Suite("W5: collections of swapped pages", .enabled(if: SwapFile.isPossible, "swapon(2) is refused here"))
struct SwappedPagesTests {
  private static func tracked() throws -> Tracked {
    let tracked = try Tracked(.asynchronous)
    for page in 0..<64 { ct_store(tracked.address(of: page), 1) }
    _ = try tracked.tracker.collect()
    ct_store(tracked.address(of: 10), 2)
    ct_store(tracked.address(of: 60), 2)
    let page = try tracked.region.addresses(of: 60..<61)
    let pageMap = try PageMap()
    for _ in 0..<1000 {
      _ = unsafe madvise(UnsafeMutableRawPointer(bitPattern: page.start), page.count, 21)  // MADV_PAGEOUT
      var isAway = false
      try pageMap.scan(page, PageMap.Query(required: .swapped, returned: .swapped)) { _, _ in isAway = true }
      if isAway { return tracked }
    }
    exit(5)
  }

  @Test("W5: what is written between two tries of a collection is in it or in the next")
  func triedAgain() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let isDone: Void? = try SwapFile.with {
        let tracked = try Self.tracked()
        let tries = Shared()
        let address = tracked.address(of: 30)
        TestHooks.set(.exclusiveHeld) { _ in if tries.add() == 2 { ct_store(address, 3) } }
        Injection.arm(.writeProtect, .resourceTemporarilyUnavailable)
        var found = Set(try tracked.tracker.collect().pages)
        check(Injection.count, is: 1)
        check(tries.value >= 2, "it was not tried again")
        TestHooks.set(.exclusiveHeld, nil)
        try found.formUnion(tracked.tracker.collect().pages)
        check(found.sorted(), is: [10, 30, 60])
        try tracked.expectExact()
        try tracked.close()
      }
      check(isDone != nil, "no swap")
    }
  }
}
