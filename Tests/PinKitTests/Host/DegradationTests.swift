import CTestSupport
import Glibc
import Logging
import SystemPackage
import Testing

@testable import PinKit

/// Tracking where userfaultfd is forbidden.
@Suite("Degradation") struct DegradationTests {
  private static let noCallback: @Sendable (FirstWrite) -> Void = { _ in }

  @Test("With userfaultfd forbidden, .automatic falls back to mprotect, with one warning, and stays exact")
  func automatic() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      check(ct_forbid_userfaultfd(), is: 0)
      let log = LogCapture()
      for needsFaults in [false, true] {
        let tracked = try Tracked(
          .automatic, onFirstWrite: needsFaults ? Self.noCallback : nil, configure: { $0.logger = log.logger })
        check(tracked.tracker.mechanism, is: .mprotect)
        for _ in 0..<10 { try tracked.expectExact() }
        try tracked.close()
      }
      let warnings = log.texts(.warning)
      check(warnings.count, is: 1)
      check(warnings.first?.contains("falls back to mprotect") == true, "\(warnings)")
      check(warnings.first?.contains("/dev/userfaultfd: Operation not permitted") == true, "\(warnings)")
      check(log.texts(.error) + log.texts(.critical), is: [])
    }
  }

  @Test(
    "Asked for by name, a forbidden mechanism is refused with every way that was tried", arguments: Mechanisms.onUserfaultfd)
  func explicit(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      check(ct_forbid_userfaultfd(), is: 0)
      let space = try AddressSpace()
      let region = try space.map(pages: 16)
      do {
        _ = try region.trackWrites(mechanism)
        check(false, "tracked all the same")
      } catch let error as PinError {
        check(error.code, is: .permissionDenied)
        check(error.errno, is: .notPermitted)
        for way in ["/dev/userfaultfd: ", "userfaultfd(2): ", "userfaultfd(2) with UFFD_USER_MODE_ONLY: "] {
          check(error.advice.contains(way), "\(way) is missing in: \(error)")
        }
        check(error.advice.contains("vm.unprivileged_userfaultfd"), "no remedy in: \(error)")
      }
      // Nothing is left of the attempt.
      try region.fill(with: 2)
      let tracker = try region.trackWrites(.mprotect)
      try region.store(UInt8(1), toByteOffset: 4096)
      try check(tracker.collect().runs, is: [1..<2])
      try space.close()
    }
  }

  @Test(
    "Without a privilege, tracking works in user mode only, and says so",
    .enabled(if: getuid() == 0, "needs root to give it up"))
  func unprivileged() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      check(ct_become_nobody(), is: 0)
      let log = LogCapture()
      let tracked = try Tracked(.automatic, configure: { $0.logger = log.logger })
      try tracked.expectExact()
      let warnings = log.texts(.warning)
      // What was said is true of what was chosen.
      if tracked.tracker.mechanism == .mprotect {
        check(warnings.count == 1 && warnings[0].contains("falls back to mprotect"), "\(warnings)")
      } else {
        check(warnings.count == 1 && warnings[0].contains("user mode only"), "\(tracked.tracker.mechanism): \(warnings)")
      }
      try tracked.close()
      for mechanism in Mechanisms.synchronous {
        let tracked = try Tracked(mechanism)
        try tracked.expectExact()
        try tracked.close()
      }
    }
  }
}
