internal import CSealing
internal import Glibc

/// One for each call that is under way: what tells `close()` that all have ended, and where opening keeps the sealed bytes in case they do
/// not open. Whoever holds one may be interrupted by a signal whose handler takes another.
@safe final class Slots: @unchecked Sendable {  // Sendable: the slots are atomic, and a scratch is its slot's holder's.
  private let count: Int
  private let scratchSize: Int
  private let slots: UnsafeMutableRawPointer
  private let scratches: UnsafeMutableRawPointer

  init(scratchSize: Int) {
    let line = cseal_line_bytes
    count = 2 * max(1, sysconf(CInt(_SC_NPROCESSORS_ONLN))) + 8
    self.scratchSize = (scratchSize + line - 1) / line * line
    unsafe slots = .allocate(byteCount: count * line, alignment: line)
    unsafe memset(slots, 0, count * line)
    unsafe scratches = .allocate(byteCount: count * self.scratchSize, alignment: line)
  }

  deinit {
    unsafe slots.deallocate()
    unsafe scratches.deallocate()
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
