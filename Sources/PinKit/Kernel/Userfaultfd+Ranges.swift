internal import CUffd
internal import SystemPackage

/// What a page operation of a userfaultfd achieved.
public enum IoctlOutcome: Sendable, Hashable {
  /// All of the range.
  case done
  /// The first `bytes` bytes; call again for the rest.
  case partial(bytes: Int)
  /// Nothing: a fork, remap, remove or unmap is in flight. It lasts until its originator runs again: retry on a timer.
  case retry
  /// A page is there already. Whoever waits for it may not have been woken: wake it.
  case exists
  /// The range or the process is gone, or is no longer registered.
  case gone
}

extension Userfaultfd {
  /// Registers a range, `UFFDIO_REGISTER`. Its bounds must be page-aligned and mapped.
  public func register(_ range: AddressRange, for mode: RegisterMode) throws(PinError) {
    var ioctls: UInt64 = 0
    let result = unsafe cuffd_register(descriptor, UInt64(range.start), UInt64(range.count), mode.rawValue, &ioctls)
    guard result < 0 else { return }
    if result == -Errno.resourceBusy.rawValue {
      throw .kernel(
        Int(result), "UFFDIO_REGISTER", range,
        advice: "Another userfaultfd has this memory; a range can have only one.")
    }
    throw .kernel(Int(result), "UFFDIO_REGISTER", range)
  }

  /// Removes a registration with all its protection, and wakes every thread that waits in the range; `UFFDIO_UNREGISTER`.
  public func unregister(_ range: AddressRange) throws(PinError) {
    try PinError.check(
      cuffd_unregister(descriptor, UInt64(range.start), UInt64(range.count)), "UFFDIO_UNREGISTER", range)
  }

  /// Write-protects a range. Until it returns, the content may still change (W1). `UFFDIO_WRITEPROTECT`.
  public func writeProtect(_ range: AddressRange) throws(PinError) -> IoctlOutcome {
    try outcome(
      cuffd_writeprotect(descriptor, UInt64(range.start), UInt64(range.count), cuffd_wp_mode_wp),
      nil, range, "UFFDIO_WRITEPROTECT")
  }

  /// Lets a range be written again and, unless told not to, wakes the threads that wait in it.
  public func removeWriteProtection(_ range: AddressRange, wake: Bool = true) throws(PinError) -> IoctlOutcome {
    try outcome(
      cuffd_writeprotect(descriptor, UInt64(range.start), UInt64(range.count), wake ? 0 : cuffd_wp_mode_dontwake),
      nil, range, "UFFDIO_WRITEPROTECT")
  }

  /// Fills missing pages of `range` from `source`, `UFFDIO_COPY`.
  public func copy(
    from source: UInt, to range: AddressRange, writeProtected: Bool = false, wake: Bool = true
  ) throws(PinError) -> IoctlOutcome {
    var done: Int64 = 0
    let result = unsafe cuffd_copy(
      descriptor, UInt64(range.start), UInt64(source), UInt64(range.count), fillMode(writeProtected, wake), &done)
    return try outcome(result, done, range, "UFFDIO_COPY")
  }

  /// Maps the zero page where pages are missing, `UFFDIO_ZEROPAGE`.
  public func zero(_ range: AddressRange, wake: Bool = true) throws(PinError) -> IoctlOutcome {
    var done: Int64 = 0
    let result = unsafe cuffd_zeropage(
      descriptor, UInt64(range.start), UInt64(range.count), fillMode(false, wake), &done)
    return try outcome(result, done, range, "UFFDIO_ZEROPAGE")
  }

  /// Maps pages that are in the page cache already: resolves minor faults, `UFFDIO_CONTINUE`.
  public func continueMapping(
    _ range: AddressRange, writeProtected: Bool = false, wake: Bool = true
  ) throws(PinError) -> IoctlOutcome {
    var done: Int64 = 0
    let result = unsafe cuffd_continue(
      descriptor, UInt64(range.start), UInt64(range.count), fillMode(writeProtected, wake), &done)
    return try outcome(result, done, range, "UFFDIO_CONTINUE")
  }

  /// Moves anonymous pages from `source` into `range` without copying, `UFFDIO_MOVE`.
  public func move(from source: UInt, to range: AddressRange, wake: Bool = true) throws(PinError) -> IoctlOutcome {
    var done: Int64 = 0
    let result = unsafe cuffd_move(
      descriptor, UInt64(range.start), UInt64(source), UInt64(range.count), fillMode(false, wake), &done)
    return try outcome(result, done, range, "UFFDIO_MOVE")
  }

  /// Makes every later access to the missing pages of `range` raise SIGBUS, `UFFDIO_POISON`.
  public func poison(_ range: AddressRange, wake: Bool = true) throws(PinError) -> IoctlOutcome {
    var done: Int64 = 0
    let result = unsafe cuffd_poison(
      descriptor, UInt64(range.start), UInt64(range.count), fillMode(false, wake), &done)
    return try outcome(result, done, range, "UFFDIO_POISON")
  }

  /// Wakes the threads that wait in `range`: they try their access again. `UFFDIO_WAKE`.
  public func wake(_ range: AddressRange) throws(PinError) {
    try PinError.check(cuffd_wake(descriptor, UInt64(range.start), UInt64(range.count)), "UFFDIO_WAKE", range)
  }

  private func fillMode(_ writeProtected: Bool, _ wake: Bool) -> UInt64 {
    (wake ? 0 : cuffd_mode_dontwake) | (writeProtected ? cuffd_mode_wp : 0)
  }

  private func outcome(
    _ result: CInt, _ progress: Int64?, _ range: AddressRange, _ operation: String
  ) throws(PinError) -> IoctlOutcome {
    if let outcome = IoctlOutcome(result: result, progress: progress, length: range.count) { return outcome }
    throw .kernel(Int(result), operation, range)
  }
}

extension IoctlOutcome {
  /// Types a result; `nil` for an error that is none of the five.
  ///
  /// `progress` is what the kernel wrote into the argument: signed, a byte count above zero, or a negated errno that repeats the
  /// result's. Only a count above zero is progress.
  init?(result: CInt, progress: Int64?, length: Int) {
    if result == 0 {
      if let progress, progress > 0, progress < length { self = .partial(bytes: Int(progress)) } else { self = .done }
      return
    }
    switch Errno(rawValue: -result) {
    case .resourceTemporarilyUnavailable:
      if let progress, progress > 0 { self = .partial(bytes: Int(progress)) } else { self = .retry }
    case .fileExists: self = .exists
    case .noSuchFileOrDirectory, .noSuchProcess: self = .gone
    default: return nil
    }
  }
}
