import CTestSupport
import Glibc
import SystemPackage
import Synchronization
import Testing

@testable import PinKit

/// Limits of the process that are reached in the middle of something.
@Suite("Exhausted limits") struct LimitTests {
  @Test("No descriptors left: a typed error that names the remedy, and nothing leaks", arguments: Mechanisms.onUserfaultfd)
  func descriptors(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      var refusals = 0
      var leaked: CInt = 0
      for spare in CInt(0)..<12 {
        for isHandlerRunning in [false, true] {
          let space = try AddressSpace()
          let region = try space.map(.anonymous(hugePages: .never), pages: 16)
          if isHandlerRunning { _ = try space.faultHandler() }
          let before = ct_descriptor_count()
          check(ct_limit_files(spare), is: 0)
          do {
            try region.trackWrites(mechanism).stop()
          } catch let error as PinError {
            refusals += 1
            check(error.code, is: .limitReached, "\(error)")
            check(error.advice.contains("ulimit -n"), "no remedy in: \(error)")
            check(error.errno, is: .tooManyOpenFiles)
            check(ct_restore_file_limit(), is: 0)
            // The two of the fault handler and their spares may have come to stay.
            let left = ct_descriptor_count() - before
            leaked += max(0, left - (isHandlerRunning ? 0 : 4))
            check(ct_userfaultfd_count(), is: 0)
          }
          check(ct_restore_file_limit(), is: 0)
          // Nothing is left protected, and it works when tried again.
          try region.fill(with: 3)
          let tracker = try region.trackWrites(mechanism)
          try region.store(UInt8(4), toByteOffset: 5 * 4096)
          try check(tracker.collect().runs, is: [5..<6])
          try space.close()
          check(ct_userfaultfd_count(), is: 0)
        }
      }
      check(refusals >= 6, "the limit was reached \(refusals) times only")
      // The process opens some of its own, once.
      check(leaked < refusals, "\(leaked) descriptors are left of \(refusals) refusals")
    }
  }

  @Test(
    "No room for the stacks of the fault threads: a typed error, and it works later",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer needs room of its own"))
  func threads() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace()
      let region = try space.map(.anonymous(hugePages: .never), pages: 16)
      let before = ct_descriptor_count()
      // A stack has 8 MiB.
      check(ct_limit_address_space(3 << 20), is: 0)
      let turns: CInt = 4
      for _ in 0..<turns {
        do {
          _ = try region.trackWrites(.handlerThread)
          check(false, "the threads fit")
        } catch let error as PinError {
          check(error.operation.hasPrefix("start the thread") || error.operation.hasPrefix("mmap"), error.operation)
          check(error.errno == .resourceTemporarilyUnavailable || error.errno == .noMemory, "\(error)")
        }
      }
      check(ct_limit_address_space(0), is: 0)
      // A handler has three; the process may have opened some of its own meanwhile.
      check(ct_descriptor_count() < before + 3 * turns, "leaked")
      let tracker = try region.trackWrites(.handlerThread)
      try region.store(UInt8(4), toByteOffset: 5 * 4096)
      try check(tracker.collect().runs, is: [5..<6])
      try space.close()
    }
  }

  @Test(
    "K7: half of vm.max_map_count reached under mprotect: sets get wider, and miss nothing",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer's own mappings fail at the limit"), .timeLimit(.minutes(60)))
  func mapCount() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(150)
      let pages = 160_000
      let callbacks = Atomic<Int>(0)
      let tracked = try Tracked(
        .mprotect, pages: pages, onFirstWrite: { _ in callbacks.add(1, ordering: .relaxed) })
      _ = try tracked.tracker.collect()
      for _ in 0..<2 {
        let widened = tracked.space.statistics.widenedOpenings
        var written = Set<Int>()
        for page in stride(from: 0, to: pages, by: 2) {
          ct_store(tracked.address(of: page), 5)
          written.insert(page)
        }
        // And once more against the grain.
        for page in stride(from: 1, to: 2000, by: 4) {
          ct_store(tracked.address(of: page), 6)
          written.insert(page)
        }
        check(ct_mapping_count() > 20_000, "the share was not reached: \(ct_mapping_count())")
        check(tracked.space.statistics.widenedOpenings > widened, "nothing was widened")
        let dirty = try tracked.tracker.collect()
        check(!dirty.isExact, "widened, and exact?")
        check(written.allSatisfy { dirty.contains($0) }, "lost pages")
        check(dirty.exactPages.pages.allSatisfy { written.contains($0) }, "reported as written, and was not")
        check(ct_load(tracked.address(of: pages - 2)), is: 5)
      }
      check(callbacks.load(ordering: .relaxed) > 0, "no callback")
      // Everything is whole again.
      try tracked.expectExact([0, 1, 2, 77, 100_000, pages - 1])
      try tracked.close()
    }
  }
}
