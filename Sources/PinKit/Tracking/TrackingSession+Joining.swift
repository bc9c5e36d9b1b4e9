internal import Logging
internal import Synchronization

extension TrackingSession {
  /// What somebody who changes how a region is protected does before anything is, and if that fails. Nobody else joins or arms meanwhile.
  struct FirstParticipant {
    var willProtect: () throws(PinError) -> Void
    var didFail: () -> Void
  }

  /// Adds a participant, and protects every page that is not.
  ///
  /// A region that is tracked by `.asynchronous` changes over to a synchronous mechanism. In between nobody watches: its trackers get
  /// every populated page as one that may have been written (``DirtySet/faultAroundRuns``).
  ///
  /// - Parameters:
  ///   - keepsPages: Whether it will ask which pages were written.
  ///   - moment: How to come to the moment when all is protected.
  ///   - armed: See ``TrackingMechanism/start(_:armed:)``.
  ///   - first: Of a participant for which it is an error if the region is protected already.
  func join(
    _ region: Region, _ wanted: WriteTracking.Mechanism, keepsPages: Bool, first: FirstParticipant? = nil,
    _ moment: ArmingMoment = .atOnce, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> UInt64 {
    try state.withLock { state throws(PinError) in
      if first != nil, state.mechanism != nil || protection.slotIndex != nil {
        throw PinError(
          .inUse, operation: "protect a region", range: addresses, advice: "It is tracked, cloned or snapshotted already.")
      }
      if state.isEnded { throw PinError(.unmapped, operation: "protect a region", range: addresses) }
      try protection.throwIfFailed("protect a region")
      if let active = state.mechanism?.kind, active != .asynchronous, wanted != .automatic, wanted != active {
        try requireCompatible(active, wanted, needsFaults: true, .init(), state)
      }
      let id = state.add(Share(pending: DirtySet(pageCount: pageCount), keepsNothing: !keepsPages))
      do throws(PinError) {
        try first?.willProtect()
        if state.mechanism?.kind == .asynchronous {
          try changeOver(&state, wanted, region, moment, armed: armed)
        } else if state.mechanism != nil, !state.isSuspended {
          try harvest(&state, .writeTracking, moment, armed: armed)
          state.trackers[id]?.pending = DirtySet(pageCount: pageCount)
        } else if let mechanism = state.mechanism {
          try protection.withoutDiscards { () throws(PinError) in try mechanism.resume(moment, armed: armed) }
          state.isSuspended = false
        } else {
          // A page that is being dropped has bytes at one moment and none at the next, with nothing in between that could keep them.
          try protection.withoutDiscards { () throws(PinError) in
            _ = try running(&state, wanted, .init(), needsFaults: true, of: region, moment, armed: armed)
          }
        }
        updateChunks(state)
        return id
      } catch {
        state.trackers[id] = nil
        first?.didFail()
        throw error
      }
    }
  }

  /// Protects what was written since the last time, with `armed` at the moment when all is; returns what was written since the participant
  /// joined or last asked.
  func arm(
    _ id: UInt64, event: InvalidationRange.Event = .writeTracking, _ moment: ArmingMoment = .atOnce,
    armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> DirtySet {
    try state.withLock { state throws(PinError) in
      try require(id, state, "protect a region")
      try harvest(&state, event, moment, armed: armed)
      return takePending(id, &state)
    }
  }

  private func changeOver(
    _ state: inout State, _ wanted: WriteTracking.Mechanism, _ region: Region, _ moment: ArmingMoment,
    armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) {
    try harvest(&state)
    let before = state.mechanism.take()
    layout.withLock { () in before?.stop() }
    state.isSuspended = false
    defer { share(populatedPages(), &state) }
    do throws(PinError) {
      state.mechanism = try protection.withoutDiscards { () throws(PinError) in
        try start(wanted, needsFaults: true, of: region, moment, armed: armed)
      }
    } catch {
      do throws(PinError) { state.mechanism = try start(.asynchronous, of: region, .notNeeded) { _ in } } catch {
        state.loss = error
      }
      throw error
    }
    // Of a page that other code dropped nothing is left to be found.
    if let mechanism = state.mechanism as? SynchronousMechanism { share(mechanism.changedWhileStarting, &state) }
    logger.info("\(addresses) was tracked by .asynchronous, and changed over to a mechanism that can act at the fault")
  }

  /// The pages that can have been written at all, as pages that may have been.
  private func populatedPages() -> DirtySet {
    var populated = DirtySet(pageCount: pageCount)
    let base = addresses.start
    let pageSize = UInt(addresses.count / pageCount)
    do throws(PinError) {
      try PageMap().scanPopulated(addresses, isPrivateAnonymous: backing.isPrivateAnonymous) { run in
        populated.append(Int((run.start - base) / pageSize)..<Int((run.end - base + pageSize - 1) / pageSize))
      }
    } catch {
      populated = DirtySet(pageCount: pageCount, runs: CollectionOfOne(0..<pageCount))
    }
    // A file's page can be written and gone from the mapping again.
    if backing.isFileLike { populated = DirtySet(pageCount: pageCount, runs: CollectionOfOne(0..<pageCount)) }
    populated.setFaultAround(populated.runs)
    return populated
  }
}
