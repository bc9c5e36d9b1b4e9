internal import Synchronization
internal import SystemPackage

extension RegionProtection {
  var failure: PinError? {
    let value = unsafe domain.pointee.failure.load(ordering: .acquiring)
    guard value != 0, let kind = FaultDomain.Failure(rawValue: UInt32(value >> 32)) else { return nil }
    let errno = CInt(truncatingIfNeeded: value & 0xffff_ffff)
    let code: PinError.Code = kind.code
    return PinError(
      code, operation: "serve faults (\(kind))", errno: errno == 0 ? nil : Errno(rawValue: errno), range: addresses,
      advice: kind.advice)
  }

  func throwIfFailed(_ operation: String) throws(PinError) {
    if let failure { throw failure }
  }

  /// Throws unless the pages are registered with the userfaultfd at this moment: without it they were written unseen, and the watchdog has not
  /// said so yet.
  func requireWatched(_ operation: String) throws(PinError) {
    if unsafe !domain.pointee.isWatched(0..<domain.pointee.table.pageCount) { try throwIfFailed(operation) }
  }

  func fail(_ failure: FaultDomain.Failure) { unsafe domain.pointee.fail(failure, errno: 0) }

  /// The failure, until it is noted that it was reported.
  var unreportedFailure: PinError? {
    guard let failure, !state.withLock({ $0.isReported }) else { return nil }
    return failure
  }

  func noteReported() { state.withLock { $0.isReported = true } }
}

extension FaultDomain.Failure {
  var code: PinError.Code {
    switch self {
    case .mappingChanged: .mappingChanged
    case .timedOut, .storeSilent: .timedOut
    case .subscriberBlocked: .subscriberFailed
    case .noFrame: .outOfMemory
    default: .handlerLost
    }
  }

  var advice: String {
    switch self {
    case .descriptorClosed:
      "Other code in this process closed PinKit's userfaultfd. What was written since cannot be known."
    case .poolClosed:
      "The file of the frame pool was closed, and its spare with it: no page can leave a frame that others have. "
        + PinError.closedAdvice
    case .refused: "The kernel refused to lift the protection of a page."
    case .timedOut: "The kernel kept asking to retry; the thread that unmaps or discards memory may be stopped."
    case .readerDied: "A thread that serves faults ended."
    case .storeEnded: "A thread that waits for the region's store ended in the middle of it."
    case .storeSilent:
      "The region's store has not answered for six times the patience of the address space, and threads wait for its pages."
    case .subscriberBlocked:
      "A subscriber answered every invalidation with .wouldBlock or an error for as long as the patience of a fault: it waits for something that waits for the fault."
    case .noFrame:
      "There was no room for the copy of a page that others share and somebody writes: the machine has no memory left, or its memory cgroup, or a limit of the process (`ulimit -l`, `ulimit -f`)."
    case .mappingChanged:
      "Use Region.unmap() and Region.discard(_:), or end the management before munmap(2), mremap(2) or mmap(2) over it."
    }
  }
}
