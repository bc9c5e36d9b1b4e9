internal import Synchronization

/// Lets accesses to a region's bytes in until the gate closes, and lets the closer wait until the last one is out.
struct AccessGate: ~Copyable, Sendable {
  private static let closed: UInt64 = 1 << 63
  private let state = Atomic<UInt64>(0)

  /// False once the gate is closed. Every `true` needs one ``leave()``.
  @inline(__always) func enter() -> Bool {
    let before = state.add(1, ordering: .acquiring).oldValue
    if before & Self.closed == 0 { return true }
    leave()
    return false
  }

  @inline(__always) func leave() { state.subtract(1, ordering: .releasing) }

  var isClosed: Bool { state.load(ordering: .acquiring) & Self.closed != 0 }

  /// Lets accesses in again after ``close()``.
  func reopen() { state.store(0, ordering: .releasing) }

  /// Closes the gate and waits for those inside. False if it was closed already.
  func close() -> Bool {
    let before = state.bitwiseOr(Self.closed, ordering: .acquiringAndReleasing).oldValue
    if before & Self.closed != 0 { return false }
    while state.load(ordering: .acquiring) != Self.closed {
      // Leaving stays one instruction: the rare closer polls.
      Kernel.pause(nanoseconds: 20_000)
    }
    return true
  }
}
