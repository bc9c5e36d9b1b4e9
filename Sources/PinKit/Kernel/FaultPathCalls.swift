internal import CUffd
internal import SystemPackage

/// The result of an ioctl in the fault path: no error object, no allocation.
enum UffdResult: Sendable, Hashable {
  case done
  /// EAGAIN: an event is in flight until its originator runs again.
  case again
  /// ENOENT, ESRCH: not registered any more.
  case gone
  case refused(errno: CInt)

  static let badDescriptor = Errno.badFileDescriptor.rawValue
  /// Of a page to be mapped that is not there, or not any more.
  static let noPage = Errno.badAddress.rawValue
  /// Of a page to be filled for which there is something already.
  static let exists = Errno.fileExists.rawValue

  @inline(__always) init(_ result: CInt) {
    switch -result {
    case 0: self = .done
    case Errno.resourceTemporarilyUnavailable.rawValue: self = .again
    case Errno.noSuchFileOrDirectory.rawValue, Errno.noSuchProcess.rawValue: self = .gone
    // The number was closed, and names some other file now.
    case Errno.inappropriateIOCTLForDevice.rawValue: self = .refused(errno: UffdResult.badDescriptor)
    default: self = .refused(errno: -result)
    }
  }

  var errno: CInt {
    switch self {
    case .done: 0
    case .again: Errno.resourceTemporarilyUnavailable.rawValue
    case .gone: Errno.noSuchFileOrDirectory.rawValue
    case .refused(let errno): errno
    }
  }
}

/// The userfaultfd calls of the fault path, on a bare descriptor: async-signal-safe.
enum Uffd {
  @inline(__always) static func unprotect(_ descriptor: CInt, _ range: AddressRange, wake: Bool) -> UffdResult {
    while true {
      let result = cuffd_writeprotect(
        descriptor, UInt64(range.start), UInt64(range.count), wake ? 0 : cuffd_wp_mode_dontwake)
      if result != -Errno.interrupted.rawValue { return UffdResult(result) }
    }
  }

  @inline(__always) static func protect(_ descriptor: CInt, _ range: AddressRange) -> UffdResult {
    while true {
      let result = cuffd_writeprotect(descriptor, UInt64(range.start), UInt64(range.count), cuffd_wp_mode_wp)
      if result != -Errno.interrupted.rawValue { return UffdResult(result) }
    }
  }

  /// Maps the first pages of `range` that are there and not mapped, without waking anybody; returns how many bytes are mapped now. A page
  /// that is mapped already counts. `UFFDIO_CONTINUE`.
  static func mapExisting(_ descriptor: CInt, _ range: AddressRange, protected: Bool) -> (UffdResult, bytes: Int) {
    var done: Int64 = 0
    let mode = cuffd_mode_dontwake | (protected ? cuffd_mode_wp : 0)
    let result = unsafe cuffd_continue(descriptor, UInt64(range.start), UInt64(range.count), mode, &done)
    if done > 0 { return (.done, Int(done)) }
    if result == -Errno.fileExists.rawValue { return (.done, Memory.pageSize) }
    if result == -Errno.interrupted.rawValue { return (.done, 0) }
    return (UffdResult(result), result == 0 ? range.count : 0)
  }

  /// Fills the first missing pages of `range` with the bytes at `source`, write-protected, and wakes who waits for them; returns how many
  /// bytes are there now. Where there is something for the first page already it is refused with ``UffdResult/exists``, and nobody is woken:
  /// whose bytes that are the kernel does not know. `UFFDIO_COPY`.
  @inline(__always) static func copy(
    _ descriptor: CInt, _ source: UInt, to range: AddressRange
  ) -> (UffdResult, bytes: Int) {
    var done: Int64 = 0
    let result = unsafe cuffd_copy(
      descriptor, UInt64(range.start), UInt64(source), UInt64(range.count), cuffd_mode_wp, &done)
    if done > 0 { return (.done, Int(done)) }
    if result == -Errno.interrupted.rawValue { return (.done, 0) }
    return (UffdResult(result), result == 0 ? range.count : 0)
  }

  /// Registers a range again, parts of which may be registered already.
  static func register(_ descriptor: CInt, _ range: AddressRange, _ mode: Userfaultfd.RegisterMode) -> UffdResult {
    var ioctls: UInt64 = 0
    return UffdResult(unsafe cuffd_register(descriptor, UInt64(range.start), UInt64(range.count), mode.rawValue, &ioctls))
  }

  @discardableResult static func wake(_ descriptor: CInt, _ range: AddressRange) -> UffdResult {
    UffdResult(cuffd_wake(descriptor, UInt64(range.start), UInt64(range.count)))
  }

  static func unregister(_ descriptor: CInt, _ range: AddressRange) -> UffdResult {
    UffdResult(cuffd_unregister(descriptor, UInt64(range.start), UInt64(range.count)))
  }

  static func duplicate(_ descriptor: CInt) throws(PinError) -> CInt {
    CInt(try PinError.check(cuffd_duplicate(descriptor), "dup of a userfaultfd"))
  }
  static func close(_ descriptor: CInt) { cuffd_close(descriptor) }

  /// A child of `fork()` closes them, so that it neither keeps the parent's memory registered nor sees it.
  static func closeInChild(_ descriptor: CInt) throws(PinError) {
    try PinError.check(cuffd_fork_add_descriptor(descriptor), "note a descriptor")
  }
  static func forgetInChild(_ descriptor: CInt) { cuffd_fork_remove_descriptor(descriptor) }
  /// Keeps `fork()` waiting while `body` runs; it must not fork.
  static func withoutForks<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    cuffd_fork_hold()
    defer { cuffd_fork_allow() }
    return try body()
  }
}

/// Faults that arrive as signals.
enum SignalFaults {
  /// Decides on a fault at an address; returns 0 if it is the program's own.
  typealias Resolver = @convention(c) (UnsafeMutableRawPointer, UInt64, CInt) -> CInt

  /// What a resolver answers where the memory itself failed, as that of a file whose device does.
  static let busError = CInt(cuffd_fault_bus_error)

  static func install() throws(PinError) { try PinError.check(cuffd_fault_install(), "sigaction") }
  /// Whether the kernel would call PinKit's handler first.
  static var isInstalled: Bool { cuffd_fault_installed() != 0 }

  static func add(
    _ range: AddressRange, context: UnsafeMutableRawPointer, unprotectInChild: Bool, _ resolver: Resolver
  ) throws(PinError) -> Int64 {
    let token = unsafe cuffd_fault_add(
      UInt64(range.start), UInt64(range.end), resolver, context,
      unprotectInChild ? CInt(cuffd_range_unprotect_in_child) : 0)
    return Int64(try PinError.check(token, "register signal faults", range))
  }
  static func remove(_ token: Int64) { cuffd_fault_remove(token) }

  /// How often in a row this thread reported `address` without anything to resolve, although nothing was protected in between.
  static func repeated(_ address: UInt64, generation: UInt64) -> UInt32 { cuffd_repeated_fault(address, generation) }
  static func forgetRepeated() { _ = cuffd_repeated_fault(0, 0) }
}

/// Makes calls of the funnel fail; only tests use it.
enum Injection {
  enum Call: CInt, CaseIterable, Sendable {
    case open = 1
    case api, register, unregister, writeProtect, unprotect, copy, zeroPage, continueMapping, move, poison, wake, read
    case pagemapScan, mmap, munmap, mprotect, madvise, memfd, pwrite
    case create, rename, unlink, sync, completion
  }
  static func arm(_ call: Call, _ errno: Errno, skip: Int = 0, times: Int = 1) {
    cuffd_inject(call.rawValue, errno.rawValue, CInt(skip), CInt(times))
  }
  static func disarm() { cuffd_inject(0, 0, 0, 0) }
  static var count: Int { Int(cuffd_injected()) }
}
