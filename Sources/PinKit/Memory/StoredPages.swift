/// The store of a ``Backing/file(_:fillAround:)`` backing, and what makes a region of it.
class StoredPages: Hashable, @unchecked Sendable {  // subclasses have constants only
  let store: any PageStore

  init(_ store: any PageStore) { self.store = store }

  /// Has the pages of a new region brought in when they are touched. Nobody has seen it yet.
  func attach(to region: Region) throws(PinError) {}

  static func == (first: StoredPages, second: StoredPages) -> Bool { first.store === second.store }
  func hash(into hasher: inout Hasher) { hasher.combine(ObjectIdentifier(store)) }
}

/// What brings the pages of a region in that are not there yet, for who touches them by other ways than a fault.
protocol PageSupply: RegionAttachment {
  /// Sees to it that `pages` are there, and the store agrees to their being written. They may be reclaimed again at any time, unless the
  /// caller has a reference to their frames: look at ``isPresent(_:)`` then.
  func prepare(_ pages: Range<Int>, toWrite: Bool) throws(PinError)
  func isPresent(_ page: Int) -> Bool
  /// Brings `pages` in, and keeps all pages from being reclaimed until ``mayLeave()``.
  func keepPresent(_ pages: Range<Int>) throws(PinError)
  func mayLeave()
  /// Somebody wrote them without a fault.
  func markDirty(_ pages: Range<Int>)
  func isDirty(_ page: Int) -> Bool
  func isUnderWriteback(_ page: Int) -> Bool
  /// Writes everything back that has changed, before the region goes; also where faults cannot be served any more. Waits until no thread is at
  /// the store, if `isLast`; otherwise for no longer than those take that are there now.
  func finish(isLast: Bool) throws(PinError)
}
