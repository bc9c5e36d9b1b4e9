import CTestSupport
import Glibc
import Logging
import SystemPackage
import Testing

@testable import PinKit

/// Signal handlers of the host, installed before and after PinKit's.
@Suite("Signals of the host") struct SignalTests {
  struct Host: Sendable, Codable, CustomStringConvertible {
    var signal: CInt
    var flags: CInt
    var mechanism: WriteTracking.Mechanism
    var description: String { "\(signal == SIGSEGV ? "SIGSEGV" : "SIGBUS") flags \(flags) .\(mechanism)" }

    static let all = [SIGSEGV, SIGBUS].flatMap { signal in
      [CInt(0), 1, 1 | 4].flatMap { flags in
        Mechanisms.inSignalHandlers.map { Host(signal: signal, flags: flags, mechanism: $0) }
      }
    }
  }

  @Test(
    "A handler from before PinKit gets the faults outside managed memory, as the kernel would call it", arguments: Host.all)
  func earlierHandler(_ host: Host) async {
    await #expect(processExitsWith: .success) { [host = host as Host] in
      ct_deadline(60)
      ct_unblock_signals()
      check(ct_handle(host.signal, host.flags), is: 0)
      let tracked = try Tracked(host.mechanism)
      let address = host.signal == SIGSEGV ? ct_guard_page() : ct_truncated_page()
      ct_store(address + 5, 5)
      check(ct_load(address + 5), is: 5)
      check(ct_seen_count(), is: 1)
      check(ct_seen_signal(), is: host.signal)
      if host.flags & 1 != 0 {
        check(ct_seen_address(), is: address + 5)
        check(ct_seen_code() > 0, "ct_seen_code() > 0")
      }
      // The mask is the host's own: what it asked for and, unless it said SA_NODEFER, the signal itself. Nothing else.
      check(ct_seen_blocked(SIGUSR1), is: 1)
      check(ct_seen_blocked(host.signal), is: (host.flags & 4 == 0 ? 1 : 0))
      check(ct_seen_blocked(SIGUSR2), is: 0)
      check(ct_seen_blocked(SIGPROF), is: 0)
      for signal in [SIGUSR1, SIGUSR2, SIGPROF, SIGSEGV, SIGBUS] { check(ct_is_blocked(signal), is: 0) }
      try tracked.expectExact()
      check(ct_seen_count(), is: 1)
      try tracked.close()
    }
  }

  @Test("SA_RESETHAND: the first fault is handled, the second kills", arguments: Mechanisms.inSignalHandlers)
  func resetHand(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .signal(SIGSEGV)) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      _ = ct_handle(SIGSEGV, 1 | 2)
      let tracked = try Tracked(mechanism)
      ct_store(ct_guard_page(), 1)
      guard ct_seen_count() == 1 else { exit(3) }
      try tracked.expectExact()
      ct_store(ct_guard_page(), 1)
    }
  }

  @Test("With the default action, a wild write kills by the right signal", arguments: Mechanisms.inSignalHandlers)
  func defaultAction(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .signal(SIGSEGV)) { [mechanism = mechanism as WriteTracking.Mechanism] in
      _ = ct_default(SIGSEGV)
      let tracked = try Tracked(mechanism)
      try tracked.expectExact()
      ct_store(ct_guard_page(), 1)
    }
    await #expect(processExitsWith: .signal(SIGBUS)) { [mechanism = mechanism as WriteTracking.Mechanism] in
      _ = ct_default(SIGBUS)
      let tracked = try Tracked(mechanism)
      try tracked.expectExact()
      ct_store(ct_truncated_page(), 1)
    }
  }

  @Test("SIG_IGN does not ignore a real fault, and does ignore raise(3)", arguments: Mechanisms.inSignalHandlers)
  func ignored(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .signal(SIGSEGV)) { [mechanism = mechanism as WriteTracking.Mechanism] in
      _ = ct_ignore(SIGSEGV)
      let tracked = try Tracked(mechanism)
      _ = ct_raise(SIGSEGV)
      _ = ct_kill(SIGSEGV)
      try tracked.expectExact()
      ct_store(ct_guard_page(), 1)
    }
    await #expect(processExitsWith: .signal(SIGBUS)) { [mechanism = mechanism as WriteTracking.Mechanism] in
      _ = ct_ignore(SIGBUS)
      let tracked = try Tracked(mechanism)
      _ = ct_raise(SIGBUS)
      try tracked.expectExact()
      ct_store(ct_truncated_page(), 1)
    }
  }

  @Test("raise(3) and kill(2) go to the host's handler, or to the default action", arguments: Mechanisms.inSignalHandlers)
  func sentSignals(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      for signal in [SIGSEGV, SIGBUS] { _ = ct_handle(signal, 1) }
      let tracked = try Tracked(mechanism)
      _ = ct_raise(SIGSEGV)
      check(ct_seen_count(), is: 1)
      check(ct_seen_signal() == SIGSEGV && ct_seen_code() <= 0, "not what raise(3) sends")
      _ = ct_raise(SIGBUS)
      check(ct_seen_count(), is: 2)
      check(ct_seen_signal() == SIGBUS && ct_seen_code() <= 0, "not what raise(3) sends")
      try tracked.expectExact()
      try tracked.close()
    }
    for signal in [SIGSEGV, SIGBUS] {
      await #expect(processExitsWith: .signal(signal)) {
        [mechanism = mechanism as WriteTracking.Mechanism, signal = signal as CInt] in
        _ = ct_default(signal)
        let tracked = try Tracked(mechanism)
        try tracked.expectExact()
        _ = ct_raise(signal)
        exit(3)
      }
    }
  }

  @Test("A handler may leave by siglongjmp, again and again", arguments: Mechanisms.inSignalHandlers)
  func longJump(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      _ = ct_handle(SIGSEGV, 1)
      let tracked = try Tracked(mechanism)
      for _ in 0..<1000 { check(ct_try_store(8, 1), is: SIGSEGV) }
      check(ct_seen_address(), is: 8)
      try tracked.expectExact()
      try tracked.close()
    }
  }

  @Test("A handler installed over PinKit's that chains: tracking goes on", arguments: Mechanisms.inSignalHandlers)
  func laterHandlerChains(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try Tracked(mechanism)
      for signal in [SIGSEGV, SIGBUS] { _ = ct_handle(signal, 8) }
      try tracked.expectExact()
      ct_store(ct_guard_page(), 9)
      check(ct_seen_count(), is: 1)
      try tracked.expectExact([5, 6, 63])
      try tracked.close()
    }
    // Outside the host's own memory the chain ends where it ended before: at the default action.
    await #expect(processExitsWith: .signal(SIGSEGV)) { [mechanism = mechanism as WriteTracking.Mechanism] in
      _ = ct_default(SIGSEGV)
      let tracked = try Tracked(mechanism)
      _ = ct_handle(SIGSEGV, 8)
      try tracked.expectExact()
      ct_store(8, 1)
    }
  }

  @Test("A handler installed over PinKit's: the next trackWrites warns", arguments: Mechanisms.inSignalHandlers)
  func laterHandlerSwallows(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let log = LogCapture()
      let tracked = try Tracked(mechanism, configure: { $0.logger = log.logger })
      check(log.texts(.warning).isEmpty, "log.texts(.warning).isEmpty")
      for signal in [SIGSEGV, SIGBUS] { _ = ct_handle(signal, 16) }
      let other = try tracked.space.map(pages: 4)
      _ = try other.trackWrites(mechanism)
      check(log.texts(.warning).filter { $0.contains("handler was installed over PinKit's") }.count, is: 1)
    }
  }

  @Test("A write to a read-only page is the program's own SIGSEGV", arguments: Mechanisms.all)
  func readOnlyPage(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      for signal in [SIGSEGV, SIGBUS] { _ = ct_handle(signal, 1) }
      let tracked = try Tracked(mechanism)
      try tracked.region.protect(8..<10)
      for page in [8, 9] {
        check(ct_try_store(tracked.address(of: page) + 100, 66), is: SIGSEGV)
        check(ct_seen_address(), is: tracked.address(of: page) + 100)
        check(ct_load(tracked.address(of: page) + 100), is: 0)
      }
      try check(tracked.tracker.collect().isEmpty, "tracked.tracker.collect().isEmpty")
      try tracked.expectExact([7, 10])
      try tracked.region.protect(8..<10, to: .readWrite)
      try tracked.expectExact([7, 8, 9, 10])
      try tracked.close()
    }
    await #expect(processExitsWith: .signal(SIGSEGV)) { [mechanism = mechanism as WriteTracking.Mechanism] in
      _ = ct_default(SIGSEGV)
      let tracked = try Tracked(mechanism)
      try tracked.region.protect(8..<10)
      ct_store(tracked.address(of: 8), 1)
    }
  }

  @Test("A fault leaves errno and the registers alone", arguments: Mechanisms.all)
  func errnoIsKept(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try Tracked(mechanism)
      for page in 0..<32 { check(ct_store_keeps_errno(tracked.address(of: page), 2), is: 1) }
      for page in 32..<64 { check(ct_store_keeps_registers(tracked.address(of: page), 2), is: 1) }
      try check(tracked.tracker.collect().runs, is: [0..<64])
      // Also where something fails inside the handler.
      if Mechanisms.inSignalHandlers.contains(mechanism) {
        let spoiled = try Tracked(mechanism, onFirstWrite: { _ in ct_spoil_errno() })
        for page in 0..<32 { check(ct_store_keeps_errno(spoiled.address(of: page), 2), is: 1) }
        try spoiled.close()
      }
      if mechanism == .inPlace {
        Injection.arm(.unprotect, .resourceTemporarilyUnavailable)
        check(ct_store_keeps_errno(tracked.address(of: 5), 3), is: 1)
        check(Injection.count, is: 1)
        Injection.disarm()
        try check(tracked.tracker.collect().runs, is: [5..<6])
      }
      try tracked.close()
    }
  }

  @Test("Many threads fault inside and outside managed memory at once", arguments: Mechanisms.inSignalHandlers)
  func mixedFaults(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      _ = ct_handle(SIGSEGV, 1)
      let tracked = try Tracked(mechanism, pages: 256)
      let threads = (0..<4).map { index in
        HostThread {
          for round in 0..<500 {
            ct_store(tracked.address(of: (round * 4 + index) % 256), UInt8(index + 1))
            if ct_try_store(UInt64(8 + index), 1) != SIGSEGV { exit(3) }
          }
        }
      }
      for _ in 0..<50 { _ = try tracked.tracker.collect() }
      for thread in threads { thread.join() }
      check(ct_seen_count(), is: 2000)
      for page in 0..<256 { check(ct_load(tracked.address(of: page)), is: UInt8(page % 4 + 1)) }
      _ = try tracked.tracker.collect()
      try tracked.expectExact()
      try tracked.close()
    }
  }
}
