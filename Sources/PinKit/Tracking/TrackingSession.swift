internal import Logging
internal import Synchronization

/// All who need to know of a region's writes: they share one protection, and each has its own view.
///
/// Whoever collects harvests the mechanism, gives what was found to every other active one, and takes its own share. Beside trackers
/// there are participants that act at the fault (snapshots, clones): they need a synchronous mechanism, and the moment when all
/// is armed.
final class TrackingSession: RegionAttachment {
  let addresses: AddressRange
  let pageCount: Int
  let backing: Backing
  let logger: Logger
  let layout: LayoutLock
  let protection: RegionProtection
  let table: PageTable
  weak let region: Region?
  /// The region is a clone that nobody has seen yet.
  let isUntouched: Bool
  let state: Mutex<State>

  struct State {
    var mechanism: (any TrackingMechanism)?
    var trackers: [UInt64: Share] = [:]
    private var nextID: UInt64 = 1
    var isSuspended = false
    var isEnded = false
    /// Why there is no mechanism although somebody tracks.
    var loss: PinError?

    mutating func add(_ share: Share) -> UInt64 {
      defer { nextID += 1 }
      trackers[nextID] = share
      return nextID
    }
  }

  /// What one of them is owed.
  struct Share {
    var pending: DirtySet
    var isPaused = false
    var callback: FirstWriteCallbacks.Callback?
    /// What a tracker allows faults to open; `nil` of participants, who do not care.
    var faultAround: FaultAroundPolicy?
    /// A tracker that wants to know exactly which pages were written, so that faults may not open others along.
    var isExact: Bool { faultAround == .exact }
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
        // Before the harvest: from there on what it gets is exact.
        if options.faultAround == .exact {
          protection.setFaultAround(.exact)
          protection.setOpensChunks(false)
        }
        // What was written so far is the others' alone.
        do throws(PinError) { try harvest(&state) } catch {
          updateChunks(state)
          updateFaultAround(state)
          throw error
        }
      }
      let id = state.add(
        Share(pending: DirtySet(pageCount: pageCount), callback: callback, faultAround: options.faultAround))
      // Before anything is protected: no first write may slip by.
      if callback != nil { updateCallbacks(state) }
      do throws(PinError) {
        let mechanism = try running(&state, wanted, options, needsFaults: needsFaults, of: region) { _ in }
        updateChunks(state)
        updateFaultAround(state)
        return (id, mechanism.kind)
      } catch {
        state.trackers[id] = nil
        updateChunks(state)
        updateFaultAround(state)
        if callback != nil { updateCallbacks(state) }
        throw error
      }
    }
  }

  func remove(_ id: UInt64) {
    state.withLock { state in
      guard let share = state.trackers.removeValue(forKey: id) else { return }
      if share.callback != nil { updateCallbacks(state) }
      updateChunks(state)
      updateFaultAround(state)
      if state.trackers.isEmpty {
        end(&state)
        // Not before somebody else begins: a range has one userfaultfd at a time.
        if !state.isEnded { giveTablesBack() }
      }
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

  func regionWillUnmap() {
    state.withLock { state in
      state.isEnded = true
      end(&state)
      protection.setCallbacks(nil)
      state.trackers = [:]
    }
  }

  /// Whether a fault may open pages that were not faulted on, for the sake of whoever copies them.
  func updateChunks(_ state: State) {
    protection.setOpensChunks(!state.trackers.values.contains(where: \.isExact))
  }

  /// Fault-around is a permission, and an exact set a promise: as long as one tracker wants exact sets, faults open one page.
  private func updateFaultAround(_ state: State) {
    let wanted = state.trackers.values.compactMap(\.faultAround)
    let policy = wanted.contains(.exact) ? .exact : wanted.first ?? .exact
    if policy != protection.faultAround { protection.setFaultAround(policy) }
  }

  func updateCallbacks(_ state: State) {
    let callbacks = state.trackers.sorted { $0.key < $1.key }.compactMap { $0.value.isPaused ? nil : $0.value.callback }
    protection.setCallbacks(callbacks.isEmpty ? nil : FirstWriteCallbacks(callbacks))
  }

  var activeMechanism: WriteTracking.Mechanism? { state.withLock { $0.mechanism?.kind } }

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
