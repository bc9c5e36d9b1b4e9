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

  /// 1: try the access again. 0: the fault is the program's own. `busError`: it is, and counts as an error of the memory.
  private static func resolve(_ domain: borrowing FaultDomain, _ address: UInt64, isWrite: Bool) -> CInt {
    let page = domain.page(at: UInt(address))
    // Without the lock: what changes meanwhile the fault path finds, and an error that was lifted just now was there when the access was made.
    let entry = domain.table[page]
    // What the program forbade itself comes before what the memory has: an access that it may make is never taken for one.
    let isDenied = entry.contains(.readDenied) || (isWrite && entry.contains(.writeDenied))
    if !isDenied, domain.isRefused(page) { return SignalFaults.busError }
    // Minor faults are registered and lifted while signals are on their way: of huge frames any may be one.
    guard isWrite || domain.hasSource || domain.mayHaveHugeFrames || domain.hasMinorFaults.load(ordering: .relaxed) else {
      return 0
    }
    let delivery = domain.delivery.load(ordering: .acquiring)
    let begun = Kernel.now()
    guard delivery == .inPlace || delivery == .mprotect else {
      // The protection was lifted while the signal was on its way; or the fault was never ours. By an older generation it is counted once too
      // often or too seldom.
      return isDenied ? 0 : tryAgain(domain, address, generation: domain.generation.load(ordering: .relaxed))
    }
    var isHeld = false
    var deadline: Deadline?
    while true {
      let hold = domain.lock.lockShared()
      let generation = domain.generation.load(ordering: .relaxed)
      let resolution = FaultPath.resolve(page: page, isWrite: isWrite, in: domain, holding: hold)
      _ = consume hold
      switch resolution {
      case .opened:
        domain.counters.add(delivery == .mprotect ? .mprotectFaults : .inPlaceFaults)
        domain.counters.addLatency(Kernel.now() - begun)
        SignalFaults.forgetRepeated()
        return 1
      case .denied:
        // The first time it may be a userfaultfd's SIGBUS that was on its way when the right was taken away: trying again
        // brings the SIGSEGV that the program deserves.
        return delivery == .inPlace && SignalFaults.repeated(address, generation: generation) == 1 ? 1 : 0
      case .alreadyOpen, .gone: return tryAgain(domain, address, generation: generation)
      case .retry, .elsewhere:
        if deadline == nil { deadline = Deadline(domain.patience) }
        if deadline?.isOver() == true { domain.failLate() }
        Kernel.pause(nanoseconds: retryPause)
      case .held:
        if !isHeld { domain.counters.add(.heldWrites) }
        isHeld = true
        // A snapshot may hold a writer for as long as it likes.
        deadline = nil
        Kernel.pause(nanoseconds: 4 * retryPause)
      case .failed:
        // The watchdog ends the process or lifts the protection; until then the access is tried again.
        Kernel.pause(nanoseconds: 1_000_000)
        return 1
      }
    }
  }

  /// Another thread was faster, or the protection was lifted while the signal was on its way: then the next try succeeds, or somebody
  /// has protected the page again meanwhile. A fault that comes again and again without that is not ours. While somebody is at the page none is
  /// counted, however long that takes.
  private static func tryAgain(_ domain: borrowing FaultDomain, _ address: UInt64, generation: UInt64) -> CInt {
    TestHooks.reach(.tryingAgain, page: domain.page(at: UInt(address)))
    if isBusy(domain.page(at: UInt(address)), in: domain) {
      Kernel.pause(nanoseconds: retryPause)
      return 1
    }
    let times = SignalFaults.repeated(address, generation: generation)
    if times > 8 { Kernel.pause(nanoseconds: 1_000_000) }
    if times <= patienceForUnexplained { return 1 }
    domain.counters.add(.unexplained)
    return 0
  }

  /// Whether somebody may have taken rights away for a moment: who gives a page another frame for a pin, with the page claimed, or who
  /// holds the wrprotect lock exclusively. Of a region that failed nobody can be waited for, nor by who may be that somebody.
  private static func isBusy(_ page: Int, in domain: borrowing FaultDomain) -> Bool {
    if domain.failure.load(ordering: .acquiring) != 0 || Kernel.wasInFaultPath { return false }
    return domain.table[page].contains(.claimed) || domain.lock.hasWriter
  }
}
