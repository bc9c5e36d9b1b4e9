/// The two steps of a change of frame that no subscriber is called for, for tools that draw them. No part of the interface that
/// programs are promised.
@_spi(Tracing) public enum FrameChangeTrace {
  public enum Step: Sendable, Hashable {
    /// Nobody finds the old frame any more, and ``MMUNotifier/invalidateRange(_:)`` is next (N5).
    case cleared
    /// The page has its new frame, and ``MMUNotifier/invalidateRangeEnd(_:)`` is next.
    case set
  }

  /// Calls `observer` at every such step of every region that somebody subscribes to, with the first page; `nil` ends it. It runs in the
  /// fault path, maybe in a signal handler, with the page claimed: it must neither wait nor touch managed memory.
  public static func observe(_ observer: (@Sendable (Step, Int) -> Void)?) {
    guard let observer else {
      TestHooks.set(.cleared, nil)
      TestHooks.set(.set, nil)
      return
    }
    TestHooks.set(.cleared) { observer(.cleared, $0) }
    TestHooks.set(.set) { observer(.set, $0) }
  }
}
