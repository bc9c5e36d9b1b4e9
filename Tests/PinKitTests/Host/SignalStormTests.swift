import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// A profiler that interrupts every thread thousands of times a second, with a handler that itself writes to tracked memory.
@Suite("Signal storms") struct SignalStormTests {
  struct Storm: Sendable, Codable, CustomStringConvertible {
    var mechanism: WriteTracking.Mechanism
    /// Whether the host has a handler of its own over PinKit's, which chains.
    var hasLaterHandler = false
    var description: String { ".\(mechanism)\(hasLaterHandler ? " beneath a later handler" : "")" }
    static let all =
      Mechanisms.all.map { Storm(mechanism: $0) }
      + Mechanisms.inSignalHandlers.map { Storm(mechanism: $0, hasLaterHandler: true) }
  }

  @Test(
    "W5: writers, a profiler and a collector finish a fixed amount of work, and no write is lost",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals and has no child of fork()"),
    arguments: Storm.all)
  func everyThreadIsInterrupted(_ storm: Storm) async {
    await #expect(processExitsWith: .success) { [storm = storm as Storm] in
      ct_deadline(120)
      let shadowed = try ShadowedRegion(storm.mechanism, pages: 96)
      // With SA_NODEFER: whoever lets a profiler interrupt its fault handler must let faults of the profiler in, too.
      if storm.hasLaterHandler { for signal in [SIGSEGV, SIGBUS] { _ = ct_handle(signal, 8 | 4) } }
      _ = ct_profile(UInt64(shadowed.tracked.region.addresses.start), 96, 4096)
      let running = Atomic<Int>(3)
      let writers = (0..<3).map { index in
        HostThread {
          guard ct_profile_this_thread(150) == 0 else { exit(3) }
          // Enough of both, on a machine of any speed.
          repeat { shadowed.write(1500, as: index) } while ct_profile_count() < 400
          ct_end_profile_of_this_thread()
          running.subtract(1, ordering: .releasing)
        }
      }
      let collector = HostThread {
        guard ct_profile_this_thread(150) == 0 else { exit(3) }
        while running.load(ordering: .acquiring) > 0 { shadowed.collect() }
        ct_end_profile_of_this_thread()
      }
      for thread in writers + [collector] { thread.join() }
      shadowed.collect()
      shadowed.expectNothingLost()
      check(shadowed.profiledWrites(), is: ct_profile_count())
      try shadowed.tracked.close()
    }
  }

  @Test(
    "setitimer(ITIMER_PROF) at 1 kHz, as a profiler sets it",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer delays signals and has no child of fork()"),
    arguments: Mechanisms.all)
  func processProfiler(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(120)
      let shadowed = try ShadowedRegion(mechanism, pages: 64)
      _ = ct_profile(UInt64(shadowed.tracked.region.addresses.start), 64, 4096)
      check(ct_profile_process(1000), is: 0)
      let running = Atomic<Int>(2)
      let writers = (0..<2).map { index in
        HostThread {
          // Until the profiler has seen some of it, on a machine of any speed.
          repeat { shadowed.write(2000, as: index) } while ct_profile_count() < 20
          running.subtract(1, ordering: .releasing)
        }
      }
      while running.load(ordering: .acquiring) > 0 { shadowed.collect() }
      for thread in writers { thread.join() }
      _ = ct_profile_process(0)
      shadowed.collect()
      shadowed.expectNothingLost()
      try shadowed.tracked.close()
    }
  }
}
