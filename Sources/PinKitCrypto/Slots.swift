internal import CSealing
internal import Glibc
internal import PinKit

/// One for each call that is under way: what tells `close()` that all have ended, and where opening keeps the sealed bytes in case they do
/// not open. Whoever holds one may be interrupted by a signal whose handler takes another.
@safe final class Slots: @unchecked Sendable {  // Sendable: the slots are atomic, and a scratch is its slot's holder's.
  private let count: Int
  private let scratchSize: Int
  private let slots: UnsafeMutableRawPointer
  private let scratches: UnsafeMutableRawPointer

  /// - Throws: `.outOfMemory`.
  init(scratchSize: Int) throws(PinError) {
    let line = cseal_line_bytes
    let count = 2 * max(1, sysconf(CInt(_SC_NPROCESSORS_ONLN))) + 8
    let rounded = scratchSize <= .max - line ? (scratchSize + line - 1) / line * line : .max
    let (bytes, isTooMuch) = rounded.multipliedReportingOverflow(by: count)
    self.count = count
    self.scratchSize = rounded
    let scratches = isTooMuch ? nil : unsafe aligned_alloc(line, bytes)
    let slots = unsafe aligned_alloc(line, count * line)
    guard let scratches = unsafe scratches, let slots = unsafe slots else {
      unsafe free(scratches)
      unsafe free(slots)
      throw PinError(
        .outOfMemory, operation: "a sealer for pages of \(scratchSize) bytes",
        advice: "It keeps \(count) pages of that size for what it opens: name the largest page that there is.")
    }
    unsafe self.scratches = scratches
    unsafe self.slots = slots
    unsafe memset(slots, 0, count * line)
  }

  deinit {
    unsafe free(slots)
    unsafe free(scratches)
  }

  func claim() -> Int { unsafe cseal_claim(slots, count) }
  func release(_ slot: Int) { unsafe cseal_release(slots, slot) }
  func scratch(of slot: Int) -> UnsafeMutableRawPointer { unsafe scratches + slot * scratchSize }

  /// Returns when every call has ended that had a slot before.
  func waitForAll() {
    for slot in 0..<count {
      unsafe cseal_claim_this(slots, slot)
      unsafe cseal_release(slots, slot)
    }
  }
}
