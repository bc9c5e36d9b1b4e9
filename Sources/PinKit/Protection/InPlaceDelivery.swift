internal import Synchronization

/// Faults that the faulting thread resolves itself, inside a signal handler: in-place userfaultfd delivery (SIGBUS) and mprotect
/// (SIGSEGV). Allocates nothing, blocks on nothing but the wrprotect lock and page claims.
enum InPlaceDelivery {
  /// In nanoseconds.
  private static let retryPause: UInt64 = 50_000
  /// A fault this often in a row at one address, with nothing to resolve, is not ours: bad memory, a truncated file.
  private static let patienceForUnexplained: UInt32 = 256

  static let resolver: SignalFaults.Resolver = { context, address, isWrite in
    let domain = unsafe context.assumingMemoryBound(to: FaultDomain.self)
    return unsafe resolve(domain.pointee, address, isWrite: isWrite != 0)
  }

  /// 1: try the access again. 0: the fault is the program's own.
  private static func resolve(_ domain: borrowing FaultDomain, _ address: UInt64, isWrite: Bool) -> CInt {
    guard isWrite else { return 0 }
    let delivery = domain.delivery.load(ordering: .acquiring)
    let begun = Kernel.now()
    let page = domain.page(at: UInt(address))
    while true {
      let hold = domain.lock.lockShared()
      let generation = domain.generation.load(ordering: .relaxed)
      let resolution = FaultPath.resolve(page: page, in: domain, holding: hold)
      _ = consume hold
      switch resolution {
      case .opened:
        domain.counters.add(delivery == .mprotect ? .mprotectFaults : .inPlaceFaults)
        domain.counters.addLatency(Kernel.now() - begun)
        SignalFaults.forgetRepeated()
        return 1
      case .denied: return 0
      case .alreadyOpen, .gone:
        // Another thread was faster, or the protection was lifted while the signal was on its way. Then the next try succeeds, or
        // somebody has protected the page again meanwhile.
        if SignalFaults.repeated(address, generation: generation) <= patienceForUnexplained { return 1 }
        domain.counters.add(.unexplained)
        return 0
      case .retry:
        if Kernel.now() - begun > domain.patience {
          domain.fail(.timedOut, errno: UffdResult.again.errno)
        }
        Kernel.pause(nanoseconds: retryPause)
      case .failed:
        // The watchdog ends the process or lifts the protection; until then the access is tried again.
        Kernel.pause(nanoseconds: 1_000_000)
        return 1
      }
    }
  }
}
