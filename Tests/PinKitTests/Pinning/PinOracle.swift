import CTestSupport
import Foundation
import SystemPackage
import Testing

@testable import PinKit

/// The running kernel's own answers.
enum PinOracle {
  /// What really takes the pin, or `nil`: then the cell cannot be tried.
  static func trial(_ access: PinVerdict.Access, _ duration: PinVerdict.Duration) -> String? {
    switch (duration, access) {
    case (.long, .writing): "io_uring_register_buffers"
    case (.long, .reading): nil
    case (.short, .reading): "process_vm_readv"
    case (.short, .writing): "process_vm_writev"
    }
  }

  /// Whether the kernel pins all of `range`; `nil` where it cannot be tried.
  static func allows(
    _ range: AddressRange, _ access: PinVerdict.Access, _ duration: PinVerdict.Duration
  ) throws -> Bool? {
    switch (duration, access) {
    case (.long, .reading): return nil
    case (.long, .writing):
      var ring = try SubmissionRing(entries: 1)
      do throws(PinError) {
        try ring.registerBuffer(range)
      } catch {
        try #require([Errno.badAddress, .notSupportedOnSocket].contains(error.errno), "not a verdict: \(error)")
        return false
      }
      try ring.unregisterBuffers()
      return true
    case (.short, _): return try pinsShortly(range, writes: access == .writing)
    }
  }

  /// The "remote" process is this one: its pages are pinned (`FOLL_PIN`, with `FOLL_WRITE` if they are written) while bytes are moved.
  private static func pinsShortly(_ range: AddressRange, writes: Bool) throws -> Bool {
    var other = [UInt8](repeating: 3, count: range.count)
    let moved = unsafe ct_move_pinned(UInt64(range.start), &other, range.count, writes ? 1 : 0)
    return try verdict(moved, of: range)
  }

  private static func verdict(_ moved: Int, of range: AddressRange) throws -> Bool {
    if moved == range.count { return true }
    // A part is what came before the mapping that was refused.
    try #require(moved == -Int(EFAULT) || (moved > 0 && moved < range.count), "not a verdict: \(moved)")
    return false
  }

  /// The same by direct I/O on a file: `read` pins what it fills, `write` what it takes. `nil` where the disk has none.
  static func allowsDirect(_ range: AddressRange, _ access: PinVerdict.Access) throws -> Bool? {
    guard ForeignMemory.isTemporaryDirectoryOnDisk else { return nil }
    let path = "\(Capabilities.temporaryDirectory)/pinkit-direct-\(UInt64.random(in: .min ... .max))"
    let descriptor = unsafe ct_open_direct(path)
    try #require(descriptor >= 0)
    unsafe unlink(path)
    defer { close(descriptor) }
    // A read of a hole fills the memory with zeros and pins nothing.
    let source = try Mapping(count: range.count)
    let content = unsafe UnsafeRawPointer(bitPattern: source.range.start)
    try #require(unsafe pwrite(descriptor, content, range.count, 0) == range.count)
    let start = unsafe UnsafeMutableRawPointer(bitPattern: range.start)!
    let moved =
      unsafe access == .writing ? pread(descriptor, start, range.count, 0) : pwrite(descriptor, start, range.count, 0)
    return try verdict(moved < 0 ? -Int(errno) : moved, of: range)
  }

  /// Whether the first write to a page whose entry a read has made takes a fault of its own.
  static func noticesFirstWrite(_ range: AddressRange, pageSize: Int) -> Bool {
    let pages = stride(from: UInt64(range.start), to: UInt64(range.end), by: pageSize).map { $0 }
    for page in pages { _ = ct_load(page) }
    return pages.map { ct_store_faults($0, 9) }.min()! > 0
  }
}
