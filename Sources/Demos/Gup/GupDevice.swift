internal import CFloor
internal import Glibc
internal import PinKit

/// A device that was given memory once: an io_uring that has it registered as a fixed buffer, which is the kernel's own long-term pin, and
/// fills it with READ_FIXED. No page table has a say in that.
@safe final class GupDevice: @unchecked Sendable {  // the demo uses it from one thread at a time
  private let fixed: OpaquePointer
  private let source: CInt
  private let pages: Int

  init(_ memory: AddressRange) throws(PinError) {
    pages = memory.count / 4096
    source = cfloor_full_file(UInt64(memory.count))
    guard source >= 0 else { throw PinError(.outOfMemory, operation: "make a memfd", advice: "errno \(-source)") }
    var made: OpaquePointer?
    let result = unsafe cfloor_fixed_start(UInt64(memory.start), UInt64(memory.count), &made)
    guard result == 0, let made = unsafe made else {
      cfloor_close(source)
      throw Self.refusal(result)
    }
    unsafe fixed = made
  }

  deinit {
    unsafe cfloor_fixed_stop(fixed)
    cfloor_close(source)
  }

  /// Puts `content` into all pages.
  func write(_ content: GupBytes) throws(PinError) {
    let bytes = GupBytes.pages(pages, content)
    let count = unsafe bytes.withUnsafeBytes { unsafe pwrite(source, $0.baseAddress!, $0.count, 0) }
    guard count == bytes.count else { throw PinError(.inputOutput, operation: "fill the device") }
    var time = 0.0
    let result = unsafe cfloor_fixed_read(fixed, source, 4096, pages, pages, &time)
    guard result == 0 else { throw PinError(.system, operation: "READ_FIXED", advice: "errno \(-result)") }
  }

  /// Whether the kernel lets memory be registered: 0, or a negated errno.
  static func registers(_ memory: AddressRange) -> CInt {
    var made: OpaquePointer?
    let result = unsafe cfloor_fixed_start(UInt64(memory.start), UInt64(memory.count), &made)
    if let made = unsafe made { unsafe cfloor_fixed_stop(made) }
    return result
  }

  /// What keeps a machine from showing this, and what does not.
  static func refusal(_ result: CInt) -> PinError {
    let cannot = [ENOSYS, EPERM, ENOMEM].contains(-result)
    return PinError(
      cannot ? .unsupported : .system, operation: "io_uring_register_buffers", advice: "errno \(-result)")
  }
}
