import CTestSupport
import Glibc
import Logging
import Synchronization
import Testing

@testable import PinKit

/// K5: threads that block the signals of faults are named when memory is armed, as the kernel ends the process without asking.
@Suite("Threads that block the signals of faults") struct BlockedSignalTests {
  @Test(
    "K5: whoever arms is told of threads that block the signal of a fault, and how to cure it", arguments: Mechanisms.all)
  func warned(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(300)
      let isOver = Atomic<Bool>(false)
      let blocked = Shared()
      let thread = HostThread {
        var all = sigset_t()
        unsafe sigfillset(&all)
        unsafe pthread_sigmask(SIG_SETMASK, &all, nil)
        blocked.value = Int(Kernel.threadID)
        while !isOver.load(ordering: .acquiring) { Kernel.pause(nanoseconds: 1_000_000) }
      }
      while blocked.value == 0 { Kernel.pause(nanoseconds: 1_000_000) }
      let log = LogCapture()
      let tracked = try Tracked(mechanism, configure: { $0.logger = log.logger })
      let warnings = log.texts(.notice).filter { $0.contains("block SIG") }
      let isSignal = mechanism == .inPlace || mechanism == .mprotect
      check(warnings.count, is: isSignal ? 1 : 0)
      if isSignal {
        let name = mechanism == .inPlace ? "SIGBUS" : "SIGSEGV"
        // There may be others that the test did not start.
        check(warnings[0].contains(" threads of this process block \(name) ("), warnings[0])
        check(warnings[0].contains("\(blocked.value) "), warnings[0])
        check(warnings[0].contains("sigdelset before pthread_sigmask"), warnings[0])
      }
      // Once is enough.
      let second = LogCapture()
      try Tracked(mechanism, configure: { $0.logger = second.logger }).close()
      check(second.texts(.notice).filter { $0.contains("block SIG") }, is: [])
      isOver.store(true, ordering: .releasing)
      thread.join()
      try tracked.expectExact()
      try tracked.close()
      let quiet = LogCapture()
      try Tracked(mechanism, configure: { $0.logger = quiet.logger }).close()
      check(quiet.texts(.notice).filter { $0.contains("\(blocked.value) ") }, is: [])
    }
  }
}
