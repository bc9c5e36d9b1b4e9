/// Namespace of write tracking: finding out which pages were written.
public enum WriteTracking {
  /// How writes are noticed.
  public enum Mechanism: String, Sendable, Hashable, Codable, CaseIterable {
    /// The cheapest of the others that does what was asked; a log line says which and why.
    case automatic
    /// Faults go to reader threads (userfaultfd, synchronous). System calls that write into tracked memory keep working.
    case handlerThread
    /// **System calls that write into a protected page fail with `EFAULT`**: read(2), io_uring reads, fixed-buffer registration.
    /// Touch the pages first, or use `.handlerThread`.
    ///
    /// Faults are resolved by the faulting thread in a SIGBUS handler (`UFFD_FEATURE_SIGBUS`): no hand-off, and several
    /// writers do not queue up behind a reader.
    case inPlace
    /// The kernel notes writes by itself (`WP_ASYNC`) and is asked with `PAGEMAP_SCAN` (Linux 6.7). The cheapest; nothing can
    /// act at the fault, so there are no first-write callbacks.
    case asynchronous
    /// mprotect(2) and SIGSEGV. Works where userfaultfd is forbidden, and on mappings of files. System calls that write into a
    /// protected page fail with `EFAULT`, as with `.inPlace`.
    case mprotect
  }

  public struct Options: Sendable {
    /// Whether a fault may open more than its page; ``FaultAroundPolicy/exact`` unless given. Only synchronous mechanisms can.
    public var faultAround: FaultAroundPolicy
    public init(faultAround: FaultAroundPolicy = .exact) { self.faultAround = faultAround }
  }
}

extension WriteTracking.Mechanism {
  /// The order in which `.automatic` tries, cheapest first, and why.
  static func candidates(needsFaults: Bool, support: Backing.Support) -> [(WriteTracking.Mechanism, reason: String)] {
    var list: [(WriteTracking.Mechanism, String)] = []
    if !needsFaults, support.contains(.asynchronousTracking) {
      list.append((.asynchronous, "nobody needs to act at the fault, and the kernel can note writes by itself"))
    }
    if support.contains(.synchronousFaults) {
      list.append(
        (
          .handlerThread,
          needsFaults
            ? "something acts at the fault, and system calls into the memory keep working"
            : "the kernel cannot note writes by itself here"
        ))
    }
    if support.contains(.mprotectTracking) {
      list.append((.mprotect, "userfaultfd cannot be used here; system calls into protected memory fail with EFAULT"))
    }
    return list
  }

  var delivery: FaultDelivery {
    switch self {
    case .automatic: .none
    case .handlerThread: .handlerThread
    case .inPlace: .inPlace
    case .asynchronous: .asynchronous
    case .mprotect: .mprotect
    }
  }

  /// What of a backing it needs.
  var requirement: Backing.Support {
    switch self {
    case .automatic: []
    case .handlerThread, .inPlace: .synchronousFaults
    case .asynchronous: .asynchronousTracking
    case .mprotect: .mprotectTracking
    }
  }
}
