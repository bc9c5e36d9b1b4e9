internal import CUffd
internal import SystemPackage

/// Pages that only this process can reach, between two that nobody can: locked, in no core dump, and not in a child of `fork()`.
/// Noncopyable, unmapped when dropped; whoever wrote a secret there wipes it first.
@safe struct SecretMapping: ~Copyable, Sendable {
  /// Without the guard pages.
  let range: AddressRange
  /// Whether it is memory of memfd_secret(2), which the kernel itself has no mapping of.
  let isSecretMemory: Bool
  private let guarded: Mapping

  /// Readable and writable pages for `count` bytes.
  init(count: Int) throws(PinError) {
    let page = Memory.pageSize
    let byteCount = (count + page - 1) / page * page
    let guarded = try Mapping(count: byteCount + 2 * page)
    let whole = guarded.range
    let range = AddressRange(start: whole.start + UInt(page), count: byteCount)
    try PinError.check(Memory.protect(whole, []), "mprotect of guard pages", whole)
    let isSecretMemory = try Self.mapSecretMemory(range)
    if !isSecretMemory { try Self.lock(range) }
    try Memory.advise(whole, .dontDump)
    try Memory.advise(whole, .dontFork)
    self.range = range
    self.isSecretMemory = isSecretMemory
    self.guarded = guarded
  }

  /// False where this kernel, or a filter, does not give such memory.
  private static func mapSecretMemory(_ range: AddressRange) throws(PinError) -> Bool {
    let made = cuffd_memfd_secret()
    let refusals = [Errno.noFunction, .notPermitted, .permissionDenied, .invalidArgument]
    if made < 0, refusals.contains(Errno(rawValue: -made)) { return false }
    let descriptor = CInt(try PinError.check(made, "memfd_secret"))
    defer { cuffd_close(descriptor) }
    try PinError.check(cuffd_resize(descriptor, Int64(range.count)), "ftruncate of memfd_secret")
    let mapped = Memory.replace(range, file: descriptor, offset: 0)
    // The kernel counts it as locked from the start.
    if mapped == -Errno.resourceTemporarilyUnavailable.rawValue { throw lockLimit("mmap of memfd_secret", mapped, range) }
    try PinError.check(mapped, "mmap of memfd_secret", range)
    return true
  }

  private static func lock(_ range: AddressRange) throws(PinError) {
    try PinError.check(Memory.protect(range, .readWrite), "mprotect", range)
    let result = cuffd_lock_memory(UInt64(range.start), UInt64(range.count))
    guard result < 0 else { return }
    switch Errno(rawValue: -result) {
    case .noMemory, .notPermitted, .resourceTemporarilyUnavailable: throw lockLimit("mlock", result, range)
    default: throw .kernel(Int(result), "mlock", range)
    }
  }

  private static func lockLimit(_ operation: String, _ result: CInt, _ range: AddressRange) -> PinError {
    PinError(
      .limitReached, operation: operation, errno: Errno(rawValue: -result), range: range,
      advice:
        "Locked memory is limited (RLIMIT_MEMLOCK): raise it with `ulimit -l`, or `LimitMEMLOCK=` of the systemd unit, "
        + "or give the process CAP_IPC_LOCK. \(range.count) bytes are needed.")
  }
}

extension Memory {
  /// Writes zeros that no compiler leaves out.
  static func wipe(_ range: AddressRange) {
    guard let start = unsafe UnsafeMutableRawPointer(bitPattern: range.start) else { return }
    unsafe cuffd_wipe(start, range.count)
  }

  /// Fills `bytes` with random numbers of the kernel; getrandom(2). Waits only early after boot.
  static func fillWithRandom(_ bytes: UnsafeMutableRawBufferPointer) throws(PinError) {
    guard let start = bytes.baseAddress else { return }
    try PinError.check(unsafe cuffd_random(start, bytes.count), "getrandom")
  }
}
