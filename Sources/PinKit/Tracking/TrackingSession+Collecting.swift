internal import Synchronization

extension TrackingSession {
  func collect(_ id: UInt64) throws(PinError) -> DirtySet {
    try state.withLock { state throws(PinError) in
      try require(id, state, "collect")
      try harvest(&state)
      return takePending(id, &state)
    }
  }

  func takePending(_ id: UInt64, _ state: inout State) -> DirtySet {
    let empty = DirtySet(pageCount: pageCount)
    guard let taken = state.trackers[id]?.pending else { return empty }
    state.trackers[id]?.pending = empty
    return taken
  }

  func setPaused(_ id: UInt64, _ paused: Bool) throws(PinError) {
    try state.withLock { state throws(PinError) in
      try require(id, state, paused ? "pause" : "resume")
      guard state.trackers[id]?.isPaused != paused else { return }
      // Up to here the pages go to whoever was tracking.
      try harvest(&state)
      setPaused(id, paused, &state)
      let allPaused = state.trackers.values.allSatisfy(\.isPaused)
      if allPaused, !state.isSuspended {
        // Half of the protection may be lifted when it fails: only resuming makes the region whole again.
        state.isSuspended = true
        try state.mechanism?.suspend()
      } else if !allPaused, state.isSuspended {
        do throws(PinError) { try resume(&state) } catch {
          // Or the next call would find nothing to do, and every set would be empty.
          setPaused(id, true, &state)
          throw error
        }
      }
    }
  }

  private func setPaused(_ id: UInt64, _ paused: Bool, _ state: inout State) {
    state.trackers[id]?.isPaused = paused
    if state.trackers[id]?.callback != nil { updateCallbacks(state) }
  }

  func resume(_ state: inout State) throws(PinError) {
    _ = writtenThroughPins()
    try state.mechanism?.resume(.notNeeded) { _ in }
    state.isSuspended = false
  }

  func require(_ id: UInt64, _ state: State, _ operation: String) throws(PinError) {
    if state.isEnded { throw PinError(.unmapped, operation: operation, range: addresses) }
    guard state.trackers[id] != nil else { throw PinError(.stopped, operation: operation, range: addresses) }
  }

  /// Takes what was written since the last harvest and gives it to every tracker that is not paused. Nothing is lost if the
  /// mechanism fails half-way.
  func harvest(_ state: inout State) throws(PinError) {
    try harvest(&state, .writeTracking, .notNeeded) { _ in }
  }

  /// The same, with `armed` at the moment when every page is protected.
  func harvest(
    _ state: inout State, _ event: InvalidationRange.Event, _ moment: ArmingMoment, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) {
    if let loss = state.loss { throw loss }
    guard let mechanism = state.mechanism, !state.isSuspended else { return }
    var found = DirtySet(pageCount: pageCount)
    var throughPins: (written: DirtySet, stale: Int)?
    var failure: PinError?
    do throws(PinError) {
      try protection.withoutDiscards { () throws(PinError) in
        try mechanism.harvest(into: &found, event, moment) { domain in
          // Before pinned pages are copied: who unpins from then on may have written after the moment, and is in the next set.
          if moment != .notNeeded { throughPins = takeWrittenThroughPins() }
          armed(domain)
        }
      }
    } catch {
      failure = error
    }
    found.formUnion(writtenThroughPins(throughPins))
    share(found, &state)
    if let failure { throw failure }
  }

  /// The pages that are pinned for writing, or were since this was last asked: no fault says that they were written (P6).
  ///
  /// - Parameter taken: What was found, where that was asked before.
  func writtenThroughPins(_ taken: (written: DirtySet, stale: Int)? = nil) -> DirtySet {
    let (written, stale) = taken ?? takeWrittenThroughPins()
    if stale > 64, let region {
      region.pinGate.beginDrop(patiently: false)
      table.forgetUnpinned()
      region.pinGate.endDrop()
    }
    return written
  }

  /// The same, and how much of the index is there for nothing. Waits for nobody.
  private func takeWrittenThroughPins() -> (written: DirtySet, stale: Int) {
    var written = DirtySet(pageCount: pageCount)
    if table.pinned.isEmpty { return (written, 0) }
    let stale = table.takeWritten { written.append($0..<$0 + 1) }
    return (written, stale)
  }

  /// Gives pages to everyone who is not paused.
  func share(_ found: DirtySet, _ state: inout State) {
    if found.isEmpty { return }
    for id in state.trackers.keys where state.trackers[id]?.isPaused == false && state.trackers[id]?.keepsNothing == false {
      state.trackers[id]?.pending.formUnion(found)
    }
  }
}
