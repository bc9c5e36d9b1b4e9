/// What ``MMUNotifier/invalidateRangeStart(_:)`` says.
public enum InvalidationResponse: Sendable, Hashable {
  /// No translation of the range is used from now on until the end.
  case done
  /// The subscriber would have to wait for something that may itself wait for this change. The operation backs off with nothing
  /// changed, and comes again.
  case wouldBlock
}

/// A subscriber: whoever caches translations from pages to frames, and wants to be told before they become stale.
///
/// Every change goes like this (N4, N5, N9):
///
///     invalidateRangeStart    every page still has its frame; stop using translations of the range, take no new ones
///       … the page table's entries are cleared …
///     invalidateRange         where a page changes frame: between the old one and the new one; must not block
///       … the new entries are set …
///     invalidateRangeEnd      the change is complete; translations may be taken again
///
/// A start that was answered ``InvalidationResponse/done`` is always followed by its end, also when a later subscriber refuses; one that
/// was answered `wouldBlock` is not. One operation over many pages is one pair (N10). Between start and end other pairs may begin
/// and end, also of the same pages: count them, or use an ``IntervalSubscription``, which does.
///
/// Callbacks run on the thread that makes the change. For a write to a shared page that is a thread of PinKit's, or with delivery in
/// place the writer's own, in a signal handler: there ``InvalidationRange/isBlockable`` is false. No callback may touch managed memory
/// or call PinKit, but for ``InvalidationRange/markDirty(_:)`` and ``Subscription/remove()``: such calls throw `.wouldDeadlock`.
/// A callback that wants a mutex under which somebody may touch managed memory must try it, and answer `wouldBlock` (N8).
///
/// Every method has a default that does nothing; implement what you need. Who implements ``invalidateRange(_:)`` alone is called for
/// every change: where nothing called it in the middle, it is called with the end (N7).
public protocol MMUNotifier: AnyObject, Sendable {
  /// Translations of the range are about to become stale.
  ///
  /// - Throws: Anything: the operation fails with `.subscriberFailed`, nothing has changed, and the subscribers that were told before
  ///   get their end. A fault, and unmapping, cannot fail: the one is tried again until its patience is over, the other goes on, and
  ///   ``release()`` follows.
  func invalidateRangeStart(_ range: InvalidationRange) throws -> InvalidationResponse
  /// The pages have no frame at this moment. Must not block: it may run with a page's entry locked.
  func invalidateRange(_ range: InvalidationRange)
  /// The change is complete.
  func invalidateRangeEnd(_ range: InvalidationRange)
  /// The memory goes for good: called once, before any frame is freed, after which no other callback comes (N12).
  func release()
  /// Whether any of the pages was used through this subscriber since its marks were last cleared (N13).
  func testYoung(_ pages: Range<Int>, of region: Region) -> Bool
  /// The same, clearing the marks. Translations may go on being used unseen for a while.
  func clearYoung(_ pages: Range<Int>, of region: Region) -> Bool
  /// The same, so that the next use is seen for sure.
  func clearFlushYoung(_ pages: Range<Int>, of region: Region) -> Bool
}

extension MMUNotifier {
  public func invalidateRangeStart(_ range: InvalidationRange) throws -> InvalidationResponse { .done }
  public func invalidateRange(_ range: InvalidationRange) {}
  public func invalidateRangeEnd(_ range: InvalidationRange) {}
  public func release() {}
  public func testYoung(_ pages: Range<Int>, of region: Region) -> Bool { false }
  public func clearYoung(_ pages: Range<Int>, of region: Region) -> Bool { clearFlushYoung(pages, of: region) }
  public func clearFlushYoung(_ pages: Range<Int>, of region: Region) -> Bool { false }
}
