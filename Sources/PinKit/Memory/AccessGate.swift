internal import Synchronization

/// Lets accesses to a region's bytes, or a snapshot's, in until the gate closes, and lets the closer wait until the last one is out.
///
/// Each thread notes in memory of its own what it is inside, and looks at the gate afterwards; the gate is written by closers alone. Whoever
/// closes it changes it first, has every thread pass a fence, and then looks at the notes: one of the two sees the other. What finds no
/// room for its note is counted in the gate.
struct AccessGate: ~Copyable, Sendable {
  private static let closed: UInt64 = 1 << 63
  /// Somebody changes what may be done with pages.
  private static let changing: UInt64 = 1 << 62
  private let state = Atomic<UInt64>(0)
  /// Of the region, or the snapshot.
  private let id: UInt64

  init(id: UInt64) { self.id = id }

  /// False once the gate is closed. Every `true` needs one ``leave()``, of the same thread, the last that came in first.
  @inline(__always) func enter() -> Bool {
    guard AccessNotes.enter(id, keepsRights: false) else { return enterCounted() }
    if state.load(ordering: .acquiring) & Self.closed == 0 { return true }
    AccessNotes.leave()
    return false
  }

  @inline(__always) func leave() {
    if !AccessNotes.leave(id) { state.subtract(1, ordering: .releasing) }
  }

  /// The same, and nothing that follows is moved before it: for who looks then whether it was waited for.
  @inline(__always) func leaveVisibly() {
    leave()
    AccessNotes.passFence()
  }

  /// For an access that checks rights, which stay as they are until ``leaveChecked()``. False if the gate is closed, rights are being
  /// changed, or there is no room: with nothing done.
  @inline(__always) func enterChecked() -> Bool {
    guard AccessNotes.enter(id, keepsRights: true) else { return false }
    if state.load(ordering: .acquiring) & (Self.closed | Self.changing) == 0 { return true }
    AccessNotes.leave()
    return false
  }

  @inline(__always) func leaveChecked() { AccessNotes.leave() }

  private func enterCounted() -> Bool {
    let before = state.add(1, ordering: .acquiring).oldValue
    if before & Self.closed == 0 {
      AccessNotes.enterCounted(id)
      return true
    }
    state.subtract(1, ordering: .releasing)
    return false
  }

  /// Whether the calling thread is inside.
  var isMine: Bool { AccessNotes.isInside(id) }
  var isClosed: Bool { state.load(ordering: .acquiring) & Self.closed != 0 }

  /// Whether nobody is inside. What this thread wrote before, who comes in later sees; and who is inside sees it after it has left.
  var isEmpty: Bool {
    // The notes first: that has every thread pass a fence, before which it has counted itself or has not looked yet.
    !isMine && AccessNotes.waitUntilEmpty(id, keepingRights: false, patience: 0)
      && state.load(ordering: .acquiring) & ~(Self.closed | Self.changing) == 0
  }

  /// Lets accesses in again after ``close()``.
  func reopen() { state.bitwiseAnd(~Self.closed, ordering: .releasing) }

  /// Closes the gate and waits for those inside. False if it was closed already.
  func close() -> Bool {
    let before = state.bitwiseOr(Self.closed, ordering: .sequentiallyConsistent).oldValue
    if before & Self.closed != 0 { return false }
    while state.load(ordering: .acquiring) & ~(Self.closed | Self.changing) != 0 {
      // Leaving stays one instruction: the rare closer polls.
      Kernel.pause(nanoseconds: 20_000)
    }
    _ = AccessNotes.waitUntilEmpty(id, keepingRights: false, patience: .max)
    return true
  }

  /// Closes the gate in a child of `fork()`, where those that were inside are not. False if it was closed already.
  func closeInChild() -> Bool {
    state.bitwiseOr(Self.closed, ordering: .sequentiallyConsistent).oldValue & Self.closed == 0
  }

  /// Waits for accesses that check rights, and keeps others out until ``endChange()``. False, with nothing done, if they last longer than
  /// `patience` nanoseconds. One thread at a time.
  func beginChange(patience: UInt64) -> Bool {
    state.bitwiseOr(Self.changing, ordering: .sequentiallyConsistent)
    if AccessNotes.waitUntilEmpty(id, keepingRights: true, patience: patience) { return true }
    endChange()
    return false
  }

  func endChange() { state.bitwiseAnd(~Self.changing, ordering: .releasing) }
}
