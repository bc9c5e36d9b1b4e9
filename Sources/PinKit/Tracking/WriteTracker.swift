internal import Synchronization

/// Knows which pages of a region were written since it was last asked.
///
/// Made by ``Region/trackWrites(_:options:onFirstWrite:)``. Calls may come from any thread; calls on trackers of one region wait for
/// each other. Dropping the last reference stops it.
public final class WriteTracker: Sendable {
  public let region: Region
  /// How writes are noticed; never `.automatic`. A snapshot or a clone of the region changes `.asynchronous` into a mechanism that can
  /// act at the fault.
  public var mechanism: WriteTracking.Mechanism { session.activeMechanism ?? firstMechanism }
  private let firstMechanism: WriteTracking.Mechanism
  private let session: TrackingSession
  private let id: UInt64

  init(region: Region, session: TrackingSession, id: UInt64, mechanism: WriteTracking.Mechanism) {
    self.region = region
    self.session = session
    self.id = id
    firstMechanism = mechanism
  }

  deinit {
    // A child of fork() has nothing to stop, and a thread that it does not have may hold the session's lock.
    guard region.space.isOfThisProcess else { return }
    // The last reference may go inside a first-write callback: stopping would wait for the callback to end.
    if Kernel.isInFaultPath { session.removeLater(id, keeping: region) } else { session.remove(id) }
  }

  /// Returns the pages that were written since the tracker was made or last collected, and protects them again in one step.
  ///
  /// A write that races with it is in this set or in the next, never in neither (W5). When it returns, every write to a page of the
  /// set that was not counted for the next is visible. Discarded pages count as written. Costs in proportion to what is
  /// dirty for the synchronous mechanisms, plus about 3 ns a populated page for `.asynchronous`.
  ///
  /// Holds the wrprotect lock exclusively, so faults in the region wait meanwhile.
  ///
  /// - Throws: ``PinError``: `.stopped`, `.unmapped`, `.handlerLost` or `.mappingChanged` when the region is no longer watched (K3),
  ///   `.timedOut`, `.wouldDeadlock` from a fault callback. What was found before an error is in the next set.
  public func collect() throws(PinError) -> DirtySet {
    try region.requireOutsideFaultPath("collect")
    // Protecting what unmap() has just given back would take it from whoever has it now.
    try region.enter("collect")
    defer { region.leave() }
    let set = try session.collect(id)
    region.counters.add(.collections)
    region.counters.add(.collectedPages, set.count)
    return set
  }

  /// Stops noticing writes until ``resume()``. What was written before is kept for the next ``collect()``. Pages that are
  /// written meanwhile are not in any set of this tracker. Once every tracker of the region is paused, writes cost nothing.
  public func pause() throws(PinError) {
    try region.requireOutsideFaultPath("pause")
    // Protecting what unmap() has just given back would take it from whoever has it now.
    try region.enter("pause")
    defer { region.leave() }
    try session.setPaused(id, true)
  }

  /// Notices writes again, from the moment it returns at the latest.
  public func resume() throws(PinError) {
    try region.requireOutsideFaultPath("resume")
    // Protecting what unmap() has just given back would take it from whoever has it now.
    try region.enter("resume")
    defer { region.leave() }
    try session.setPaused(id, false)
  }

  /// Ends the tracking; the last tracker of a region lifts its protection. Threads that wait in a fault go on. A second call does
  /// nothing.
  ///
  /// - Throws: ``PinError`` `.wouldDeadlock` from a fault callback.
  public func stop() throws(PinError) {
    try region.requireOutsideFaultPath("stop")
    guard region.space.isOfThisProcess else { return }
    session.remove(id)
  }

  /// How many pages the region's latest fault opened.
  public var faultAroundWindow: Int { session.faultAroundWindow }
}

extension Region {
  /// Starts to track which pages are written.
  ///
  /// Pages written after the call returns are in a set that ``WriteTracker/collect()`` returns. Several trackers share the
  /// region's one mechanism, and each has its own view.
  ///
  /// - Parameters:
  ///   - mechanism: `.automatic` picks the cheapest that does what was asked, and logs which and why.
  ///   - options: Whether faults may open neighbouring pages.
  ///   - onFirstWrite: Called before the first write to a page since it was last protected lands: the page still holds the old bytes, and
  ///     nobody can write it until the callback returns. It runs on a fault thread (`.handlerThread`) or **inside a signal
  ///     handler** of the writing thread (`.inPlace`, `.mprotect`), with the wrprotect lock held shared. It must not write to the
  ///     region, allocate where the allocator's memory is managed, or wait for anything that a writer may hold; inside a
  ///     signal handler it must be async-signal-safe. Calls on the region that change protection throw `.wouldDeadlock` in it.
  /// - Throws: ``PinError``: `.unsupported` where the backing or the kernel cannot, naming what can; `.permissionDenied`; `.inUse`
  ///   where another mechanism is active or another userfaultfd has the memory; `.unmapped`.
  public func trackWrites(
    _ mechanism: WriteTracking.Mechanism = .automatic, options: WriteTracking.Options = .init(),
    onFirstWrite: (@Sendable (FirstWrite) -> Void)? = nil
  ) throws(PinError) -> WriteTracker {
    try requireOutsideFaultPath("trackWrites")
    try enter("trackWrites")
    defer { leave() }
    let session = try session(protection())
    let (id, active) = try session.add(to: self, mechanism, options, onFirstWrite)
    return WriteTracker(region: self, session: session, id: id, mechanism: active)
  }
}
