import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// K5: a handler of the host that was there before PinKit's is called where the kernel would have called it.
@Suite("Handlers without SA_ONSTACK", .enabled(if: ct_has_sanitizer() == 0, "a sanitizer calls handlers itself"))
struct AlternateStackTests {
  #if arch(x86_64)
    static let moves = true
  #else
    static let moves = false
  #endif

  @Test(
    "K5: a fault that is not PinKit's reaches the host's handler on the stack that it interrupted, again and again",
    .enabled(if: moves, "handlers are called on the alternate stack here"), arguments: [ct_plain, ct_siginfo])
  func chained(_ kind: Int) async {
    await #expect(processExitsWith: .success) { [flags = CInt(kind) as CInt] in
      ct_deadline(300)
      check(ct_handle(SIGSEGV, flags), is: 0)
      let tracked = try Tracked(.mprotect)
      HostThread {
        check(ct_use_alternate_stack(), is: 0)
        for turn in 1...200 {
          let page = ct_guard_page()
          if turn % 2 == 0 {
            check(ct_store_keeps_errno(page, 5), is: 1)
          } else {
            check(ct_store_keeps_registers(page, 5), is: 1)
          }
          check(ct_load(page), is: 5)
          check(ct_seen_count(), is: CInt(turn))
          check(ct_seen_on_alternate_stack(), is: 0)
          check(ct_seen_blocked(SIGSEGV) + ct_seen_blocked(SIGUSR1), is: 2)
          check(ct_is_blocked(SIGSEGV) + ct_is_blocked(SIGUSR1), is: 0)
          // A fault of PinKit's in between.
          ct_store(tracked.address(of: turn % 64), UInt8(turn))
        }
      }.join()
      check(ct_seen_count(), is: 200)
      try tracked.close()
    }
  }

  @Test("K5: a handler may leave by siglongjmp, also for an error of a store")
  func left() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      for signal in [SIGBUS, SIGSEGV] { _ = ct_handle(signal, CInt(ct_siginfo)) }
      var configuration = AddressSpace.Configuration()
      configuration.logger = LogCapture().logger
      let space = try AddressSpace(configuration: configuration)
      let store = UnrulyStore(pages: 16)
      store.set { $0.reading = { pages throws(PinError) in if pages.contains(5) { throw .broken } } }
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      let address = UInt64(region.addresses.start)
      HostThread {
        check(ct_use_alternate_stack(), is: 0)
        for _ in 0..<3 {
          check(ct_try_load(address + 5 * 4096), is: -SIGBUS)
          check(ct_seen_on_alternate_stack(), is: Self.moves ? 0 : 1)
          check(ct_is_blocked(SIGBUS), is: 0)
          check(ct_try_load(address + 6 * 4096), is: 7)
        }
      }.join()
      try space.close()
    }
  }
}
