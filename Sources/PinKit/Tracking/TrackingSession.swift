internal import Logging
internal import Synchronization

/// All who need to know of a region's writes: they share one protection, and each has its own view.
///
/// Whoever collects harvests the mechanism, gives what was found to every other active one, and takes its own share. Beside trackers
/// there are participants that act at the fault (snapshots, clones): they need a synchronous mechanism, and the moment when all
/// is armed.
final class TrackingSession: RegionAttachment {
  private let addresses: AddressRange
  private let pageCount: Int
  private let backing: Backing
  private let logger: Logger
  private let layout: LayoutLock
  private let protection: RegionProtection
  private let table: PageTable
  private weak let region: Region?
  /// The region is a clone that nobody has seen yet.
  private let isUntouched: Bool
  private let state: Mutex<State>

  private struct State {
    var mechanism: (any TrackingMechanism)?
    var trackers: [UInt64: Share] = [:]
    var nextID: UInt64 = 1
    var isSuspended = false
    var isEnded = false
    /// Why there is no mechanism although somebody tracks.
    var loss: PinError?
  }

  /// What one of them is owed.
  private struct Share {
    var pending: DirtySet
    var isPaused = false
    var callback: FirstWriteCallbacks.Callback?
    /// A tracker that wants to know exactly which pages were written, so that faults may not open others along.
    var isExact = false
    /// Nobody will ask for its pages.
    var keepsNothing = false
  }

  init(region: Region, protection: RegionProtection, isUntouched: Bool = false) {
    self.isUntouched = isUntouched
    addresses = region.addresses
    pageCount = region.pageCount
    backing = region.backing
    logger = region.space.configuration.logger
    layout = region.layout
    self.protection = protection
    table = region.table
    self.region = region
    state = Mutex(State())
  }

  // MARK: Trackers come and go

  func add(
    to region: Region, _ wanted: WriteTracking.Mechanism, _ options: WriteTracking.Options,
    _ callback: FirstWriteCallbacks.Callback?
  ) throws(PinError) -> (id: UInt64, mechanism: WriteTracking.Mechanism) {
    let needsFaults = callback != nil || options.faultAround != .exact
    return try state.withLock { state throws(PinError) in
      if state.isEnded { throw PinError(.unmapped, operation: "trackWrites", range: addresses) }
      try protection.throwIfFailed("trackWrites")
      if let mechanism = state.mechanism {
        try requireCompatible(mechanism.kind, wanted, needsFaults: needsFaults, options, state)
        // What was written so far is the others' alone.
        try harvest(&state)
      }
      let id = state.nextID
      state.nextID += 1
      state.trackers[id] = Share(
        pending: DirtySet(pageCount: pageCount), callback: callback, isExact: options.faultAround == .exact)
      // Before anything is protected: no first write may slip by.
      if callback != nil { updateCallbacks(state) }
      do throws(PinError) {
        let mechanism = try running(&state, wanted, options, needsFaults: needsFaults, of: region) { _ in }
        updateChunks(state)
        return (id, mechanism.kind)
      } catch {
        state.trackers[id] = nil
        if callback != nil { updateCallbacks(state) }
        throw error
      }
    }
  }

  /// Whether a fault may open pages that were not faulted on, for the sake of whoever copies them.
  private func updateChunks(_ state: State) {
    protection.setOpensChunks(!state.trackers.values.contains(where: \.isExact))
  }

  var activeMechanism: WriteTracking.Mechanism? { state.withLock { $0.mechanism?.kind } }

  /// The session's mechanism, started or resumed if need be.
  private func running(
    _ state: inout State, _ wanted: WriteTracking.Mechanism, _ options: WriteTracking.Options, needsFaults: Bool,
    of region: Region, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> any TrackingMechanism {
    if let mechanism = state.mechanism {
      if state.isSuspended { try resume(&state) }
      return mechanism
    }
    if let loss = state.loss { throw loss }
    protection.setFaultAround(options.faultAround)
    let mechanism = try start(wanted, needsFaults: needsFaults, of: region, armed: armed)
    state.mechanism = mechanism
    return mechanism
  }

  private func requireCompatible(
    _ active: WriteTracking.Mechanism, _ wanted: WriteTracking.Mechanism, needsFaults: Bool,
    _ options: WriteTracking.Options, _ state: State
  ) throws(PinError) {
    guard wanted == .automatic || wanted == active else {
      throw PinError(
        .inUse, operation: "trackWrites(.\(wanted))", range: addresses,
        advice:
          "The region is tracked by .\(active) already, and has one mechanism at a time: ask for .automatic or .\(active), or stop the other trackers first."
      )
    }
    if needsFaults, active == .asynchronous {
      throw PinError(
        .inUse, operation: "trackWrites", range: addresses,
        advice:
          "First-write callbacks and fault-around need a synchronous mechanism, and the region is tracked by .asynchronous: stop its trackers first, or give the first of them a callback."
      )
    }
    guard options.faultAround == .exact || options.faultAround == protection.faultAround else {
      throw PinError(
        .inUse, operation: "trackWrites", range: addresses,
        advice: "Another tracker of the region chose fault-around \(protection.faultAround); they share one protection.")
    }
  }

  /// Starts what was asked for, or for `.automatic` the first candidate that works here.
  private func start(
    _ wanted: WriteTracking.Mechanism, needsFaults: Bool, of region: Region, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> any TrackingMechanism {
    guard wanted == .automatic else {
      try requireSupport(wanted, needsFaults: needsFaults)
      return try start(wanted, of: region, armed: armed)
    }
    var refusals: [PinError] = []
    for (candidate, reason) in WriteTracking.Mechanism.candidates(
      needsFaults: needsFaults, support: backing.support)
    {
      do throws(PinError) {
        let mechanism = try start(candidate, of: region, armed: armed)
        if candidate == .mprotect, let refusal = refusals.first(where: { $0.code == .permissionDenied }) {
          Degradation.warnOnce(logger, refusal)
        } else if candidate == .mprotect, let refusal = refusals.first(where: { $0.code == .limitReached }) {
          logger.warning("tracking \(addresses) by mprotect: \(refusal)")
        }
        logger.info("tracking \(addresses) by .\(candidate): \(reason)")
        return mechanism
      } catch {
        // Another mechanism would not change a subscriber's mind.
        if error.code == .subscriberFailed || error.code == .timedOut { throw error }
        refusals.append(error)
      }
    }
    throw refusals.last
      ?? PinError(.unsupported, operation: "trackWrites", advice: "No mechanism can track \(backing).")
  }

  private func requireSupport(_ wanted: WriteTracking.Mechanism, needsFaults: Bool) throws(PinError) {
    guard backing.support.isSuperset(of: wanted.requirement) else {
      throw PinError(
        .unsupported, operation: "trackWrites(.\(wanted))", range: addresses,
        advice:
          "The backing is \(backing); synchronous userfaultfd tracking needs anonymous, pool or hugetlb memory. Use .asynchronous or .mprotect here."
      )
    }
    if needsFaults, wanted == .asynchronous {
      throw PinError(
        .unsupported, operation: "trackWrites(.asynchronous)", range: addresses,
        advice:
          "The kernel resolves these faults by itself: first-write callbacks and fault-around need .handlerThread, .inPlace or .mprotect."
      )
    }
  }

  private func start(
    _ kind: WriteTracking.Mechanism, of region: Region, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> any TrackingMechanism {
    let mechanism: any TrackingMechanism =
      kind == .asynchronous
      ? try AsynchronousMechanism(region: region, protection: protection)
      : SynchronousMechanism(
        kind: kind, protection: protection, pageCount: pageCount, unmapped: isUntouched ? region.frames : nil)
    // What was written through pins before is nobody's.
    _ = writtenThroughPins()
    try layout.withLock { () throws(PinError) in try mechanism.start(armed: armed) }
    return mechanism
  }

  func remove(_ id: UInt64) {
    state.withLock { state in
      guard let share = state.trackers.removeValue(forKey: id) else { return }
      if share.callback != nil { updateCallbacks(state) }
      updateChunks(state)
      if state.trackers.isEmpty { end(&state) }
    }
  }

  /// The same on the watchdog's thread, which also gives the region up.
  func removeLater(_ id: UInt64, keeping region: Region) {
    protection.later {
      self.remove(id)
      _ = region
    }
  }

  private func end(_ state: inout State) {
    let mechanism = state.mechanism.take()
    state.isSuspended = false
    state.loss = nil
    layout.withLock { () in mechanism?.stop() }
    protection.setFaultAround(.exact)
  }

  private func updateCallbacks(_ state: State) {
    let callbacks = state.trackers.sorted { $0.key < $1.key }.compactMap { $0.value.isPaused ? nil : $0.value.callback }
    protection.setCallbacks(callbacks.isEmpty ? nil : FirstWriteCallbacks(callbacks))
  }

  func regionWillUnmap() {
    state.withLock { state in
      state.isEnded = true
      end(&state)
      protection.setCallbacks(nil)
      state.trackers = [:]
    }
  }

  // MARK: Collecting

  func collect(_ id: UInt64) throws(PinError) -> DirtySet {
    try state.withLock { state throws(PinError) in
      try require(id, state, "collect")
      try harvest(&state)
      let empty = DirtySet(pageCount: pageCount)
      guard let taken = state.trackers[id]?.pending else { return empty }
      state.trackers[id]?.pending = empty
      return taken
    }
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

  private func resume(_ state: inout State) throws(PinError) {
    _ = writtenThroughPins()
    try state.mechanism?.resume { _ in }
    state.isSuspended = false
  }

  private func require(_ id: UInt64, _ state: State, _ operation: String) throws(PinError) {
    if state.isEnded { throw PinError(.unmapped, operation: operation, range: addresses) }
    guard state.trackers[id] != nil else { throw PinError(.stopped, operation: operation, range: addresses) }
  }

  /// Takes what was written since the last harvest and gives it to every tracker that is not paused. Nothing is lost if the
  /// mechanism fails half-way.
  private func harvest(
    _ state: inout State, _ event: InvalidationRange.Event = .writeTracking,
    armed: (borrowing FaultDomain) -> Void = { _ in }
  ) throws(PinError) {
    if let loss = state.loss { throw loss }
    guard let mechanism = state.mechanism, !state.isSuspended else { return }
    var found = DirtySet(pageCount: pageCount)
    var failure: PinError?
    do throws(PinError) {
      try protection.withoutDiscards { () throws(PinError) in try mechanism.harvest(into: &found, event, armed: armed) }
    } catch {
      failure = error
    }
    found.formUnion(writtenThroughPins())
    share(found, &state)
    if let failure { throw failure }
  }

  /// The pages that are pinned for writing, or were since this was last asked: no fault says that they were written (P6).
  private func writtenThroughPins() -> DirtySet {
    var written = DirtySet(pageCount: pageCount)
    if table.pinned.isEmpty { return written }
    let stale = table.takeWritten { written.append($0..<$0 + 1) }
    if stale > 64, let region {
      region.pinGate.beginDrop(patiently: false)
      table.forgetUnpinned()
      region.pinGate.endDrop()
    }
    return written
  }

  /// Gives pages to everyone who is not paused.
  private func share(_ found: DirtySet, _ state: inout State) {
    if found.isEmpty { return }
    for id in state.trackers.keys where state.trackers[id]?.isPaused == false && state.trackers[id]?.keepsNothing == false {
      state.trackers[id]?.pending.formUnion(found)
    }
  }

  // MARK: Participants that act at the fault

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
  ///   - armed: See ``TrackingMechanism/start(armed:)``.
  ///   - first: Of a participant for which it is an error if the region is protected already.
  func join(
    _ region: Region, _ wanted: WriteTracking.Mechanism, keepsPages: Bool, first: FirstParticipant? = nil,
    armed: (borrowing FaultDomain) -> Void
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
      let id = state.nextID
      state.nextID += 1
      state.trackers[id] = Share(pending: DirtySet(pageCount: pageCount), keepsNothing: !keepsPages)
      do throws(PinError) {
        try first?.willProtect()
        if state.mechanism?.kind == .asynchronous {
          try changeOver(&state, wanted, region, armed: armed)
        } else if state.mechanism != nil, !state.isSuspended {
          try harvest(&state, armed: armed)
          state.trackers[id]?.pending = DirtySet(pageCount: pageCount)
        } else if let mechanism = state.mechanism {
          try protection.withoutDiscards { () throws(PinError) in try mechanism.resume(armed: armed) }
          state.isSuspended = false
        } else {
          // A page that is being dropped has bytes at one moment and none at the next, with nothing in between that could keep them.
          try protection.withoutDiscards { () throws(PinError) in
            _ = try running(&state, wanted, .init(), needsFaults: true, of: region, armed: armed)
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
    _ id: UInt64, event: InvalidationRange.Event = .writeTracking, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> DirtySet {
    try state.withLock { state throws(PinError) in
      try require(id, state, "protect a region")
      try harvest(&state, event, armed: armed)
      let empty = DirtySet(pageCount: pageCount)
      guard let taken = state.trackers[id]?.pending else { return empty }
      state.trackers[id]?.pending = empty
      return taken
    }
  }

  private func changeOver(
    _ state: inout State, _ wanted: WriteTracking.Mechanism, _ region: Region, armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) {
    try harvest(&state)
    let before = state.mechanism.take()
    layout.withLock { () in before?.stop() }
    state.isSuspended = false
    defer { share(populatedPages(), &state) }
    do throws(PinError) {
      state.mechanism = try protection.withoutDiscards { () throws(PinError) in
        try start(wanted, needsFaults: true, of: region, armed: armed)
      }
    } catch {
      do throws(PinError) { state.mechanism = try start(.asynchronous, of: region) { _ in } } catch { state.loss = error }
      throw error
    }
    logger.info("\(addresses) was tracked by .asynchronous, and changed over to a mechanism that can act at the fault")
  }

  /// The pages that can have been written at all, as pages that may have been.
  private func populatedPages() -> DirtySet {
    var populated = DirtySet(pageCount: pageCount)
    let base = addresses.start
    let pageSize = UInt(addresses.count / pageCount)
    do throws(PinError) {
      let query = PageMap.Query(anyOf: PageMap.populated, returned: [])
      try PageMap().scan(addresses, query) { run, _ in
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

  var faultAroundWindow: Int { protection.faultAroundWindow }
}

extension Region {
  /// The region's session, made when it is first needed.
  func session(_ protection: RegionProtection, isUntouched: Bool = false) throws(PinError) -> TrackingSession {
    try attachments.findOrMake(TrackingSession.self) { () throws(PinError) in
      TrackingSession(region: self, protection: protection, isUntouched: isUntouched)
    }
  }
}

/// The one warning of a process that has to make do without userfaultfd.
enum Degradation {
  private static let hasWarned = Atomic<Bool>(false)

  static func warnOnce(_ logger: Logger, _ error: PinError) {
    guard !hasWarned.exchange(true, ordering: .relaxed) else { return }
    logger.warning("userfaultfd cannot be used, tracking falls back to mprotect: \(error)")
  }
}
