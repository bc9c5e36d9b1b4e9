import CTestSupport
import Glibc
import Logging

@testable import PinKit

extension AddressSpace {
  /// For a process of its own in which faults may end in SIGBUS or SIGSEGV: ``ct_try_load`` and ``ct_try_store`` say which. The process
  /// ends after `deadline` seconds.
  static func forTriedFaults(deadline: CInt = 20) throws -> AddressSpace {
    ct_deadline(deadline)
    for signal in [SIGBUS, SIGSEGV] { _ = ct_handle(signal, CInt(ct_siginfo)) }
    var configuration = Configuration()
    configuration.logger.logLevel = .critical
    return try AddressSpace(configuration: configuration)
  }
}

/// Checks that a system call that reads the bytes at `address` gets EFAULT.
func checkSystemCallFails(at address: UInt64) {
  var pipes: [CInt] = [0, 0]
  check(unsafe pipe(&pipes), is: 0)
  let wrote = unsafe write(pipes[1], UnsafeRawPointer(bitPattern: UInt(address))!, 100)
  check(CInt(wrote), is: -1)
  check(errno, is: EFAULT)
  for end in pipes { close(end) }
}
