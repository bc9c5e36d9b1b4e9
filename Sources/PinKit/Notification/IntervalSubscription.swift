internal import Synchronization

/// Who knows which pages were used.
protocol YoungPages: AnyObject, Sendable {
  func testYoung(_ pages: Range<Int>) -> Bool
  func clearYoung(_ pages: Range<Int>) -> Bool
}

/// A subscription to a range of pages with a sequence count, for whoever installs translations while changes may be under way (N11).
///
/// The corresponding kernel type is `struct mmu_interval_notifier`. A translation is installed like this, with a lock of the
/// subscriber's own that its invalidation takes too:
///
///     repeat
///       sequence = readBegin()          waits while a change is under way
///       find or fault the page          whatever that takes
///       lock
///       if readRetry(sequence) { unlock; continue }
///       install the translation
///       unlock
///
/// Whatever changed in between, before the lock was taken, makes `readRetry` say yes; whatever changes later calls the invalidation,
/// which finds the translation. Nested and concurrent changes are counted.
public final class IntervalSubscription: Sendable {
  public let region: Region
  public let pages: Range<Int>
  private let state: State
  private let subscription: Subscription

  /// Sees to it that translations of the range are not used any more; the answer as for ``MMUNotifier/invalidateRangeStart(_:)``.
  public typealias Invalidation = @Sendable (InvalidationRange) -> InvalidationResponse

  /// - Throws: As ``Region/subscribe(_:to:file:line:)``.
  public init(
    _ region: Region, pages: Range<Int>? = nil, invalidate: @escaping Invalidation
  ) throws(PinError) {
    self.region = region
    self.pages = pages ?? 0..<region.pageCount
    state = State(invalidate, nil)
    subscription = try region.subscribe(state, to: pages)
  }

  init(
    _ region: Region, pages: Range<Int>, young: any YoungPages, invalidate: @escaping Invalidation
  ) throws(PinError) {
    self.region = region
    self.pages = pages
    state = State(invalidate, young)
    subscription = try region.subscribe(state, to: pages)
  }

  /// Changes with every change of the range.
  @inline(__always) var sequence: UInt64 { state.sequence.load(ordering: .acquiring) }

  /// A number for ``readRetry(_:)``. Blocks while a change of the range is under way.
  ///
  /// - Throws: ``PinError``: `.wouldDeadlock` from a callback; `.unmapped` when the region is gone, `.stopped` after ``remove()``.
  public func readBegin() throws(PinError) -> UInt64 {
    try LockOrder.refuseInCallback("readBegin", region.addresses)
    guard region.space.isOfThisProcess else { throw .notInherited("readBegin") }
    var turns = 0
    defer { if turns > 0 { LockOrder.didWait() } }
    while true {
      if state.isOver.load(ordering: .acquiring) {
        throw PinError(region.gate.isClosed ? .unmapped : .stopped, operation: "readBegin", range: region.addresses)
      }
      let sequence = state.sequence.load(ordering: .sequentiallyConsistent)
      if state.changes.load(ordering: .sequentiallyConsistent) == 0 { return sequence }
      if turns == 0 { LockOrder.willWait(for: "readBegin", place: LockPlace()) }
      turns += 1
      if turns < 200 { Kernel.relax() } else { Kernel.pause(nanoseconds: 10_000) }
    }
  }

  /// Whether something has changed, or began to, since ``readBegin()`` returned `sequence`. Call it with the lock held under which
  /// translations are installed.
  public func readRetry(_ sequence: UInt64) -> Bool {
    state.sequence.load(ordering: .sequentiallyConsistent) != sequence
      || state.changes.load(ordering: .sequentiallyConsistent) != 0 || state.isOver.load(ordering: .acquiring)
  }

  /// Ends it: see ``Subscription/remove()``.
  public func remove() {
    refuseTranslations()
    subscription.remove()
  }

  /// Lets nobody install a translation any more, while changes are still told.
  func refuseTranslations() { state.isOver.store(true, ordering: .sequentiallyConsistent) }

  final class State: MMUNotifier {
    let sequence = Atomic<UInt64>(0)
    /// How many changes are under way.
    let changes = Atomic<Int>(0)
    let isOver = Atomic<Bool>(false)
    private let invalidate: Invalidation
    private let young: (any YoungPages)?

    init(_ invalidate: @escaping Invalidation, _ young: (any YoungPages)?) {
      self.invalidate = invalidate
      self.young = young
    }

    func testYoung(_ pages: Range<Int>, of region: Region) -> Bool { young?.testYoung(pages) ?? false }
    func clearFlushYoung(_ pages: Range<Int>, of region: Region) -> Bool { young?.clearYoung(pages) ?? false }

    func invalidateRangeStart(_ range: InvalidationRange) -> InvalidationResponse {
      changes.add(1, ordering: .sequentiallyConsistent)
      sequence.add(1, ordering: .sequentiallyConsistent)
      let response = invalidate(range)
      // Nothing changes now, and no end comes.
      if response == .wouldBlock { changes.subtract(1, ordering: .sequentiallyConsistent) }
      return response
    }

    func invalidateRangeEnd(_ range: InvalidationRange) { changes.subtract(1, ordering: .sequentiallyConsistent) }

    func release() { isOver.store(true, ordering: .sequentiallyConsistent) }
  }
}
