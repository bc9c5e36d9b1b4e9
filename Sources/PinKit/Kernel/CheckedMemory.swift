internal import CUffd
internal import SystemPackage

/// Reading and writing memory that other code may guard, truncate or unmap at any moment (K6): memory that was adopted.
///
/// The kernel makes the copies, and answers with an errno where an access would end in a signal. A page more costs little more than a copy
/// of it where the target lies on huge pages; elsewhere about 300 ns, and a call about 1 µs. Where a filter forbids the calls
/// (`process_vm_readv` and `process_vm_writev`), `/proc/self/mem` serves; where there is neither, nothing answers, and copies are accesses.
///
/// Async-signal-safe and without allocations, but for ``prepareCheckedCopies()``.
extension Memory {
  /// What a copy is answered with where there are no bytes: a guard page, behind the end of a file, no right, no mapping.
  static let noBytes = -Errno.badAddress.rawValue

  /// Decides how copies are made, once; false if nothing answers with an error.
  static func prepareCheckedCopies() -> Bool { cuffd_checked_prepare() != CInt(cuffd_checked_nothing) }

  /// Copies bytes that other threads may change meanwhile to memory of PinKit's own. The kernel takes hold of the target: what is protected
  /// is written without a fault. Returns how many were copied before the first page that cannot be read; a
  /// negated errno if there are none, ``noBytes`` for example.
  @inline(__always) static func copyChecked(
    _ source: UInt, to target: UnsafeMutableRawPointer, count: Int
  ) -> Int { unsafe cuffd_checked_read(target, UnsafeRawPointer(bitPattern: source)!, count) }

  /// Copies bytes to managed memory. Returns how many were copied before the first page that cannot be written at the moment, be it that
  /// it is protected; a negated errno if there are none.
  static func storeChecked(_ source: UnsafeRawPointer, to target: UInt, count: Int) -> Int {
    let put = unsafe cuffd_checked_write(UnsafeMutableRawPointer(bitPattern: target)!, source, count)
    guard put == -Int(Errno.noFunction.rawValue) else { return put }
    // Of what is left nothing writes without going around protection. So the first page is looked at, and then written.
    let pageSize = UInt(pageSize)
    let first = min(count, Int((target / pageSize + 1) * pageSize - target))
    if !isReadable(target) { return Int(noBytes) }
    unsafe UnsafeMutableRawPointer(bitPattern: target)!.copyMemory(from: source, byteCount: first)
    return first
  }

  /// The same to memory of the program's: of what is managed the faults are taken. ``noBytes`` also of a target that cannot be written.
  static func copyChecked(_ source: UInt, toProgram target: UnsafeMutableRawPointer, count: Int) -> Int {
    let from = unsafe UnsafeRawPointer(bitPattern: source)!
    let put = unsafe cuffd_checked_write(target, from, count)
    if put == -Int(Errno.noFunction.rawValue) { return unsafe cuffd_checked_read(target, from, count) }
    // Or the source is memory that nobody may take hold of.
    return unsafe put == Int(noBytes) ? cuffd_checked_through(target, from, count) : put
  }

  /// As ``storeChecked(_:to:count:)``, of a source that the kernel cannot take hold of, at most 4 KiB. ``noBytes`` if it can.
  static func storeThrough(_ source: UnsafeRawPointer, to target: UInt, count: Int) -> Int {
    var byte: UInt8 = 0
    if unsafe cuffd_checked_write(&byte, source, 1) != Int(noBytes) { return Int(noBytes) }
    return unsafe cuffd_checked_through(UnsafeMutableRawPointer(bitPattern: target)!, source, count)
  }

  /// Whether the byte at an address can be read.
  static func isReadable(_ address: UInt) -> Bool {
    var byte: UInt8 = 0
    return unsafe copyChecked(address, to: &byte, count: 1) == 1
  }

  /// Takes the fault that a store to the page at `range` would take. 0 or a negated errno.
  static func touchChecked(_ range: AddressRange) -> CInt { adviseResult(range, .populateWrite) }

  /// Looks at how each of the first 64 pages of `range` begins: a bit is set for those whose first 8 bytes are not all zeros. Returns how many
  /// pages were looked at before the first that cannot be read.
  @inline(__always) static func heads(_ range: AddressRange, pageSize: Int) -> (readable: Int, notZero: UInt64) {
    var bits: UInt64 = 0
    let seen = unsafe cuffd_checked_heads(
      UnsafeRawPointer(bitPattern: range.start)!, pageSize, CInt(min(64, range.count / pageSize)), &bits)
    return (max(0, Int(seen)), bits)
  }
}
