internal import Synchronization

/// What changes, where, and how a subscriber may react.
///
/// Handed to every callback of an invalidation; the corresponding kernel type is `struct mmu_notifier_range`.
@safe public struct InvalidationRange: Sendable {
  /// Why translations become stale. The corresponding C constants are `MMU_NOTIFY_…`.
  public enum Event: String, Sendable, Hashable, CaseIterable, Codable {
    /// The region goes.
    case unmap
    /// The pages get other frames, or none: copy-on-write, ``Region/discard(_:whilePinned:)``.
    case clear
    /// ``Region/protect(_:to:)`` of several pages, and of one.
    case protectionRange, protectionPage
    /// The right to write goes, the frame stays: a tracker collects, a snapshot or a clone is taken.
    case writeTracking
    /// The right to write goes, the frame stays: the pages are about to be written to their store.
    case writeback
    /// The pages are about to be sealed: their bytes change, the frames stay.
    case seal
    /// The bytes move to another frame. Nothing in this version does it.
    case migrate
    /// Somebody gets the page for itself alone. Nothing in this version does it.
    case exclusive
    /// The address space goes.
    case release
  }

  public let pages: Range<Int>
  public let event: Event
  /// Whether ``MMUNotifier/invalidateRangeStart(_:)`` may block. Where it may not, a subscriber that would have to returns
  /// ``InvalidationResponse/wouldBlock``.
  public let isBlockable: Bool
  let operation: UInt64
  private let ownerBits: UInt
  /// The region holds whoever calls; a subscriber that keeps it beyond the callback must hold the region itself already.
  private let unretained: Unmanaged<Region>

  init(
    region: Unmanaged<Region>, pages: Range<Int>, event: Event, isBlockable: Bool, operation: UInt64,
    owner: UInt
  ) {
    unsafe unretained = region
    self.pages = pages
    self.event = event
    self.isBlockable = isBlockable
    self.operation = operation
    ownerBits = owner
  }

  /// The same change, of some of its pages.
  func part(_ pages: Range<Int>) -> InvalidationRange {
    unsafe InvalidationRange(
      region: unretained, pages: pages, event: event, isBlockable: false, operation: operation, owner: ownerBits)
  }

  /// The region whose pages change.
  public var region: Region { unsafe unretained.takeUnretainedValue() }

  /// Whether the change was made inside ``withOwner(_:_:)`` of this object, so that a subscriber can ignore what it causes itself.
  public func isOwned(by owner: AnyObject) -> Bool { ownerBits == Self.bits(of: owner) }

  /// Runs `body`; subscribers can tell that `owner` is behind the changes that it makes on this thread.
  public static func withOwner<Result, Failure: Error>(
    _ owner: AnyObject, _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try Kernel.withInvalidationOwner(bits(of: owner), body)
  }

  private static func bits(of owner: AnyObject) -> UInt {
    unsafe UInt(bitPattern: Unmanaged.passUnretained(owner).toOpaque())
  }

  /// Marks pages as written, from inside ``MMUNotifier/invalidateRangeStart(_:)`` or another callback of this very invalidation: what a
  /// secondary MMU wrote through its translations is in the next collection, which is this one where a collection is what
  /// invalidates (N2). Takes no lock.
  ///
  /// - Throws: ``PinError``: `.outOfBounds` for pages outside ``pages``; `.tooLate` outside the callback: the pages may have been
  ///   collected as clean by now.
  public func markDirty(_ pages: Range<Int>) throws(PinError) {
    guard Kernel.callbackOperation == operation else {
      throw PinError(
        .tooLate, operation: "markDirty", range: region.addresses,
        advice: "Mark pages inside the callback that was given this range; after it they count as clean already.")
    }
    guard pages.lowerBound >= self.pages.lowerBound, pages.upperBound <= self.pages.upperBound else {
      throw PinError(
        .outOfBounds, operation: "markDirty of pages \(pages)", range: region.addresses,
        advice: "The invalidation is of pages \(self.pages).")
    }
    if pages.isEmpty { return }
    // The callback that this is in belongs to a change of the region.
    unsafe unretained._withUnsafeGuaranteedRef { region in
      region.table.discarded.insertVisibly(pages)
      region.supply?.markDirty(pages)
    }
  }
}
