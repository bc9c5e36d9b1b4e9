internal import Synchronization

extension Region {
  /// Writes everything that was written to the region before the call to its store, and makes it durable.
  ///
  /// Writers go on; one that hits a page which is being written to the store waits until that is done. A page that is pinned for writing is
  /// written as it is at one moment, and stays dirty, as it may change unseen (P3). Where the store fails, with EIO or for want of space, the
  /// pages stay dirty and in memory, this call throws, and the next one tries again; a failed flush of the store has everything
  /// written again that it was to make durable. Every caller gets the result of an attempt that began after its call: never a success after a failure of
  /// its own pages.
  ///
  /// Blocks for as long as the store does. Several threads may call it: they wait for each other.
  ///
  /// - Throws: ``PinError``: `.unsupported` for memory without a store, `.unmapped`, `.wouldDeadlock` from a fault callback, and what
  ///   the store says: `.inputOutput`, `.outOfSpace`, `.fileChanged`, `.readOnly`. `.mappingChanged` for as long as other code goes on dropping
  ///   pages that have changed (`madvise(2)`): what is still there stays dirty, and the next call tries again.
  public func flush() throws(PinError) {
    try requireOutsideFaultPath("flush")
    try enter("flush")
    defer { leave() }
    try filePages("flush").flush()
  }

  /// Drops pages whose bytes the store has: the next access brings them in again.
  ///
  /// Subscribers are asked first, and told: a page that a secondary MMU used since it was last asked stays (N13), as does one that is dirty or
  /// not yet durable, that somebody has pinned, looked up or attached data to, or that a clone has, too.
  ///
  /// - Returns: How many pages were dropped; their memory is free.
  /// - Throws: ``PinError``: `.unsupported` for memory without a store, `.outOfBounds`, `.unmapped`, `.subscriberFailed`, `.timedOut`,
  ///   `.wouldDeadlock` from a fault callback.
  @discardableResult public func reclaim(_ pages: Range<Int>) throws(PinError) -> Int {
    _ = try addresses(of: pages)
    try requireOutsideFaultPath("reclaim")
    try enter("reclaim")
    defer { leave() }
    return try filePages("reclaim").reclaim(pages)
  }

  /// Whether the bytes of a page are in memory, and whether its store has them.
  public struct FilePageState: Sendable, Hashable {
    public let isPresent: Bool
    /// Newer than what the store was given; also while it is pinned for writing, as nobody sees it change (P3).
    public let isDirty: Bool
    public let isUnderWriteback: Bool
    /// The store has them, and has not made them durable yet.
    public let isUnflushed: Bool
  }

  /// What is known of a page of a store now.
  ///
  /// - Throws: ``PinError``: `.unsupported` for memory without a store, `.outOfBounds`, `.unmapped`.
  public func filePageState(_ page: Int) throws(PinError) -> FilePageState {
    try requirePage(page)
    try enter("filePageState")
    defer { leave() }
    let file = try filePages("filePageState")
    return FilePageState(
      isPresent: file.present.contains(page), isDirty: file.isDirty(page),
      isUnderWriteback: file.writeback.contains(page), isUnflushed: file.unflushed.contains(page))
  }

  func filePages(_ operation: String) throws(PinError) -> FilePages {
    guard backing.stored != nil, let pages = attachments.find(FilePages.self) else {
      throw PinError(
        .unsupported, operation: operation, range: addresses,
        advice: "The backing is \(backing), which has no store: map the region as .file(store).")
    }
    return pages
  }
}
