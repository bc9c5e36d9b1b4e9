import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// Swift's own crash backtracer, which owns SIGSEGV and SIGBUS before PinKit does.
@Suite("The crash backtracer") struct BacktraceTests {
  @Test(
    "A wild write while tracking is on prints a backtrace and dies by the right signal",
    .enabled(if: ct_has_backtracer() == 1, "swift-backtrace is not installed beside the runtime"),
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has crash handlers of its own"))
  func wildWrite() async {
    await #expect(processExitsWith: .success) {
      // The runtime reads its settings as it starts: the body runs once more in a process of its own for each mechanism.
      let choice = ct_backtrace_choice()
      if choice >= 0 {
        let tracked = try Tracked(Mechanisms.all[Int(choice)])
        try tracked.expectExact()
        ct_store(64, 1)
      }
      ct_deadline(120)
      for (index, mechanism) in Mechanisms.all.enumerated() {
        let status = unsafe ct_run_with_backtraces(CInt(index), "Bad pointer dereference at 0x0000000000000040")
        check(status, is: 1000 + SIGSEGV, "\(mechanism)")
      }
    }
  }
}
