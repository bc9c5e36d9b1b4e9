internal import Synchronization

/// The bytes of a region at one moment, while its writers go on.
///
/// It holds, for every page, exactly the bytes that were there when ``Region/snapshot(_:)`` returned (W6). Nothing is copied then: a
/// page is copied when it is first written after that, before the write lands, and until then is read from the region itself.
///
/// Calls may come from any thread. Dropping the last reference closes it.
public final class Snapshot: Sendable {
  public let region: Region
  let uncountedRegion: Uncounted<Region>
  /// In nanoseconds: how long writers of the region could not go on. It is the time for which the wrprotect lock was held
  /// exclusively until every page was protected; had the kernel to be asked more than once, the last time.
  ///
  /// Where there are more than 2,048 pages to protect, most of them are before, in slices beside the writers; who takes a fault meanwhile waits
  /// for a slice.
  public let pause: UInt64
  let set: SnapshotSet
  let generation: SnapshotGeneration
  private let id: UInt64
  /// Held until it is closed and nobody reads of it any more.
  private let store: Mutex<CaptureStore?>
  /// The same, 0 once it is closed, for who reads: not counted, so that readers write no word that they share.
  private let open: Atomic<UInt>
  private let readers = AccessGate(id: Region.nextID())
  let isClosed = Atomic<Bool>(false)
  /// The pages that were released; made when the first one is.
  let released = Mutex(DirtySet(pageCount: 0))
  let hasReleased = Atomic<Bool>(false)

  init(region: Region, set: SnapshotSet, start: SnapshotSet.Start) {
    self.region = region
    uncountedRegion = Uncounted(region)
    self.set = set
    id = start.id
    store = Mutex(start.store)
    open = Atomic(Uncounted(start.store).address)
    generation = start.generation
    pause = start.pause
  }

  deinit { close() }

  /// Which snapshot it is.
  public var identity: SnapshotIdentity { generation.identity }
  /// Which snapshot of the region was taken before it, since the region's protection began.
  public var parent: SnapshotIdentity? { generation.parent }
  public var pageCount: Int { region.pageCount }
  /// In bytes.
  public var pageSize: Int { region.pageSize }
  /// How much memory its copies take, in bytes, without those that it shares with newer snapshots.
  public var capturedBytes: Int { openStore?.bytes ?? 0 }

  /// Why its bytes cannot be read any more: it was given up, or the region can no longer be watched. `nil` while all is well, and
  /// after ``close()``.
  public var failure: PinError? {
    guard let store = openStore else { return nil }
    return failure(of: store)
  }

  /// A store that was given up takes every snapshot with it that is older: pages that those did not keep themselves may be missing.
  func failure(of store: CaptureStore) -> PinError? {
    if let failure = store.failureOfChain(region.addresses) { return failure }
    return set.isEnded.load(ordering: .acquiring) ? nil : set.protection.failure
  }

  /// Ends the snapshot and frees its memory, but for what older snapshots still need. Writers that wait for room go on. A second
  /// call does nothing.
  ///
  /// Blocks for as long as another call changes the protection of the region. From a fault callback it is done a little later.
  public func close() {
    guard region.space.isOfThisProcess, !isClosed.exchange(true, ordering: .sequentiallyConsistent) else { return }
    open.store(0, ordering: .sequentiallyConsistent)
    let last = takeUnread()
    if Kernel.isInFaultPath {
      set.protection.later { [set, id, region] in
        set.end(id)
        _ = (last, region)
      }
    } else {
      set.end(id)
    }
  }

  /// The store it began with; `nil` once it is closed.
  private var openStore: CaptureStore? { isClosed.load(ordering: .acquiring) ? nil : store.withLock { $0 } }

  func openStore(_ operation: StaticString) throws(PinError) -> CaptureStore {
    if !region.isOfThisProcess { throw .notInherited("\(operation)") }
    try region.requireOutsideFaultPath(operation)
    guard let store = openStore else { throw closed("\(operation)") }
    return store
  }

  /// Runs `body` with the store, and with all newer ones, held; without counting that.
  @inline(__always) func reading(
    _ operation: StaticString, _ body: (Uncounted<CaptureStore>) throws(PinError) -> Void
  ) throws(PinError) {
    if !region.isOfThisProcess { throw .notInherited("\(operation)") }
    try region.requireOutsideFaultPath(operation)
    _ = readers.enter()
    defer {
      readers.leaveVisibly()
      // Closed meanwhile: one of the two sees the other, as `readers` says.
      if isClosed.load(ordering: .acquiring) { _ = takeUnread() }
    }
    guard let store = Uncounted<CaptureStore>(address: open.load(ordering: .acquiring)) else {
      throw closed("\(operation)")
    }
    try body(store)
  }

  /// The store of a snapshot that is closed, unless somebody reads of it: then whoever leaves last takes it.
  @inline(never) private func takeUnread() -> CaptureStore? {
    readers.isEmpty ? store.withLock { $0.take() } : nil
  }

  func closed(_ operation: String) -> PinError { PinError(.closed, operation: operation, range: region.addresses) }
}

extension Region {
  /// Takes a snapshot: a handle on the bytes of this moment.
  ///
  /// Writers pause while the last pages are protected (``Snapshot/pause``), and from then on pay once for each page, or run of pages, that
  /// they are the first to write. The region stays protected when the snapshot is closed, so that the next one has to
  /// protect only what was written since; ``endSnapshots()`` ends that.
  ///
  /// A region that is tracked by `.asynchronous` changes over to a synchronous mechanism: its trackers get every populated page
  /// once, as one that may have been written.
  ///
  /// Pages that are pinned for writing are copied at once, as no fault says when they change (P6).
  ///
  /// Blocks while all pages are protected, which is in proportion to their number, and while other threads discard or collect.
  ///
  /// - Throws: ``PinError``: `.unsupported` where the backing or the kernel cannot, or for `.asynchronous`; `.inUse` where another
  ///   mechanism is active; `.permissionDenied`, `.outOfMemory`, `.limitReached`, also where the capture limit has no room for
  ///   the pages that are pinned for writing; `.unmapped`, `.handlerLost`, `.timedOut`;
  ///   `.wouldDeadlock` from a fault callback; `.invalidArgument` for a negative limit. No snapshot exists then.
  public func snapshot(_ options: SnapshotOptions = .init()) throws(PinError) -> Snapshot {
    try requireOutsideFaultPath("snapshot")
    try enter("snapshot")
    defer { leave() }
    guard backing.support.contains(.snapshot) else {
      throw PinError(.unsupported, operation: "snapshot", range: addresses, advice: "The backing is \(backing).")
    }
    guard options.captureLimit ?? 0 >= 0 else {
      throw PinError(.invalidArgument, operation: "snapshot", range: addresses, advice: "captureLimit must not be negative.")
    }
    let set = try SnapshotSet.of(self)
    let start = try set.begin(self, options)
    counters.add(.snapshots)
    return Snapshot(region: self, set: set, start: start)
  }

  /// Ends the protection that stays between snapshots: from now on writes cost nothing, unless trackers need it too.
  /// ``Snapshot/changes(since:)`` does not reach across it. Does nothing if there was none.
  ///
  /// Gives back what snapshots of a large and sparse region take beside their copies: the page tables of what is empty, 2 MiB for
  /// each GiB (from Linux 6.14 on).
  ///
  /// - Throws: ``PinError``: `.inUse` while a snapshot is open, `.unmapped`, `.wouldDeadlock` from a fault callback.
  public func endSnapshots() throws(PinError) {
    try requireOutsideFaultPath("endSnapshots")
    try enter("endSnapshots")
    defer { leave() }
    try attachments.find(SnapshotSet.self)?.leave()
  }
}
