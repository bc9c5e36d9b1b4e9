internal import Synchronization

/// The snapshots of a region.
///
/// Only the newest one's store is written by the fault path (``FaultDomain/owed``); older ones look into the stores of newer ones
/// for what theirs does not have. So each capture is copied once, however many snapshots are open.
///
/// Lock order: `state` → the session's lock → `Region.discarding` → `Region.layout` → the wrprotect lock → page claims.
///
/// Unchecked for its superclass, which has no state: all of it is constant, atomic or locked.
@safe final class SnapshotSet: DropDecision, RegionAttachment, @unchecked Sendable {
  let protection: RegionProtection
  let addresses: AddressRange
  let isPrivateAnonymous: Bool
  private let session: TrackingSession
  private let recycler: CaptureRecycler
  private let state = Mutex(State())
  /// The memory is gone; what could be kept was kept before.
  let isEnded = Atomic<Bool>(false)
  /// Held while a slice of the sweep runs; true once there is nothing to sweep any more.
  let sweeping = Mutex(false)
  /// Held while pages are dropped that are owed to somebody.
  let dropping = Mutex(())

  private struct State {
    /// With the session: the region's protection stays between snapshots, so that the next one arms what was written since.
    var participant: UInt64?
    /// Oldest first.
    var open: [Member] = []
    /// What the fault path writes to; kept as long as it may.
    var newest: CaptureStore?
    var generation: SnapshotGeneration?
    var nextID: UInt64 = 1
    /// What was written before a snapshot that could not be taken: the next one has it among its changes.
    var unclaimed: DirtySet?
    /// The guard pages of adopted memory when the last one was taken.
    var guards: DirtySet?
  }

  private struct Member {
    let id: UInt64
    let store: CaptureStore
    let options: SnapshotOptions
  }

  /// What a new snapshot starts with.
  struct Start {
    let id: UInt64
    let store: CaptureStore
    let generation: SnapshotGeneration
    let pause: UInt64
  }

  init(region: Region, protection: RegionProtection, session: TrackingSession) {
    self.protection = protection
    recycler = CaptureRecycler(handler: protection.handler)
    self.session = session
    addresses = region.addresses
    isPrivateAnonymous = region.backing.isPrivateAnonymous
    super.init()
    let decision = unsafe UInt(bitPattern: Unmanaged.passUnretained(self as DropDecision).toOpaque())
    protection.dropDecision.store(decision, ordering: .releasing)
    // Whoever sets a sealer later has this set first, and tells it.
    if region.hasSeals.load(ordering: .relaxed) { keepNoCopies() }
  }

  override func keeping(_ pages: Range<Int>, _ drop: () throws(PinError) -> Void) throws(PinError) -> Bool {
    try keepingOwed(pages, drop)
  }

  // MARK: Beginning

  func begin(_ region: Region, _ options: SnapshotOptions) throws(PinError) -> Start {
    // Whatever costs comes before the first page is protected.
    let store = try CaptureStore(region: region, recycler: recycler)
    // A discard that began before there was a protection knows nothing of what it would have to keep.
    _ = region.unwatchedDiscards.lockExclusive()
    region.unwatchedDiscards.unlockExclusive()
    let sweep = options.sweep ? try region.space.snapshotSweep() : nil
    let start = try state.withLock { state throws(PinError) in
      if isEnded.load(ordering: .acquiring) { throw PinError(.unmapped, operation: "snapshot", range: addresses) }
      state.open.reserveCapacity(state.open.count + 1)
      let guards = guardPages(in: [0..<region.pageCount])
      noteLostGuards(state.guards, guards)
      let limit = options.effectiveLimit(of: store, insteadOf: state.newest)
      store.setLimit(limit.bytes, givesUp: limit.givesUp)
      var (pause, changes) = try arm(region, options, store, &state)
      noteVacant(guards, store)
      // What became one has changed.
      if let guards { changes.formUnion(guards.subtracting(state.guards ?? DirtySet(pageCount: region.pageCount))) }
      state.guards = guards
      let generation = SnapshotGeneration(parent: state.generation?.identity, changes: changes)
      state.generation?.setNext(generation)
      state.generation = generation
      let id = state.nextID
      state.nextID += 1
      state.open.append(Member(id: id, store: store, options: options))
      protection.handler.snapshots.add(store.progress)
      return Start(id: id, store: store, generation: generation, pause: pause)
    }
    sweep?.add(store, of: self)
    return start
  }

  /// The instant of the snapshot is inside: `armed` runs under the exclusive lock when no page can be written.
  private func arm(
    _ region: Region, _ options: SnapshotOptions, _ store: CaptureStore, _ state: inout State
  ) throws(PinError) -> (pause: UInt64, changes: DirtySet) {
    var pause: UInt64?
    let previous = state.newest
    var refusal: PinError?
    let hasHidden = region.table.hasDeniedPages
    let memory = hasHidden ? try? ProcessMemory() : nil
    TestHooks.reach(.arming)
    // The first page was hidden meanwhile: what is needed to read it is not there.
    var isLate = false
    let armed = { (domain: borrowing FaultDomain) in
      isLate = !hasHidden && domain.table.hasDeniedPages && !domain.table.pinned.isEmpty
      if isLate { return }
      refusal = Self.keepPinned(store, memory, domain)
      if refusal != nil { return }
      previous?.setSuccessor(store)
      domain.owed.store(
        UInt(bitPattern: unsafe Unmanaged.passUnretained(store).toOpaque()), ordering: .sequentiallyConsistent)
      domain.density.reset()
      // Asked here and not before: sealers are set under the session's lock, too.
      domain.withSeals { ($0 as? CopyDecision)?.noteMoment(store) }
      pause = Kernel.now() - domain.exclusiveSince.load(ordering: .relaxed)
    }
    var changes = DirtySet(pageCount: region.pageCount)
    // The fault path has it from the moment when all is armed.
    defer {
      if pause != nil {
        state.newest = store
        if let previous { CaptureShares.end(previous) }
      }
    }
    if let participant = state.participant {
      try requireMechanism(options.mechanism)
      changes = try session.arm(participant, .inSlices, armed: armed)
      if let unclaimed = state.unclaimed { changes.formUnion(unclaimed) }
      state.unclaimed = refusal == nil && !isLate ? nil : changes
    } else {
      state.unclaimed = nil
      let joined = try session.join(region, options.mechanism, keepsPages: true, .inSlices, armed: armed)
      if refusal == nil && !isLate { state.participant = joined } else { session.remove(joined) }
    }
    if isLate { return try arm(region, options, store, &state) }
    if let refusal { throw refusal }
    guard let pause else {
      throw PinError(
        .inUse, operation: "snapshot", range: addresses, advice: "Nothing protects the region; resume its trackers first.")
    }
    return (pause, changes)
  }

  private func requireMechanism(_ wanted: WriteTracking.Mechanism) throws(PinError) {
    guard wanted != .automatic, let active = session.activeMechanism, active != wanted else { return }
    throw PinError(
      wanted == .asynchronous ? .unsupported : .inUse, operation: "snapshot(.\(wanted))", range: addresses,
      advice: "The region is protected by .\(active), and has one mechanism at a time: ask for .automatic or .\(active).")
  }

  // MARK: Ending

  /// A snapshot closes. Whoever it held goes on when the last one does, or when the next older one has room.
  func end(_ id: UInt64) {
    state.withLock { state in
      guard let index = state.open.firstIndex(where: { $0.id == id }) else { return }
      let member = state.open.remove(at: index)
      member.store.progress.isOpen.store(false, ordering: .relaxed)
      guard let newest = state.newest, !isEnded.load(ordering: .acquiring) else { return }
      guard let heir = state.open.last else { return removeTarget(&state) }
      if member.store === newest { handOver(newest, to: heir) }
    }
  }

  /// From now on copies are wiped out with their snapshot: pages of the region may be sealed.
  func keepNoCopies() { recycler.keepsNothing() }

  /// The newest store stays for the sake of older snapshots: from now on with what is left of the latest one's limit.
  private func handOver(_ store: CaptureStore, to heir: Member) {
    let (limit, givesUp) = heir.options.effectiveLimit(of: store, insteadOf: nil)
    // What a cgroup leaves now is all for what is still to be kept.
    let rest = heir.options.captureLimit == nil ? limit : max(0, limit - heir.store.bytes)
    let (sum, isHuge) = store.bytes.addingReportingOverflow(rest)
    store.setLimit(isHuge ? Int.max : sum, givesUp: givesUp)
  }

  private func removeTarget(_ state: inout State) {
    if let newest = state.newest {
      newest.progress.isNewest.store(false, ordering: .relaxed)
      CaptureShares.end(newest)
    }
    // Where the region has failed, a thread may have stopped inside the store, with the lock: both stay until the region goes.
    guard protection.failure == nil else { return }
    protection.exclusive { $0.owed.store(0, ordering: .sequentiallyConsistent) }
    state.newest = nil
  }

  /// Runs `body` if no open snapshot is older than that of `store`; nobody comes or goes meanwhile.
  func whileOldest(_ store: CaptureStore, _ body: () -> Void) {
    state.withLock { if $0.open.first?.store === store { body() } }
  }

  /// Ends the protection that stays for the next snapshot.
  func leave() throws(PinError) {
    try state.withLock { state throws(PinError) in
      guard state.open.isEmpty else {
        throw PinError(
          .inUse, operation: "endSnapshots", range: addresses,
          advice: "\(state.open.count) snapshots of the region are open; close them first.")
      }
      guard let participant = state.participant.take() else { return }
      state.generation = nil
      state.unclaimed = nil
      state.guards = nil
      session.remove(participant)
      recycler.drop()
    }
  }

  // MARK: The region goes

  func regionWillUnmap() {}

  func bytesWillGo() {
    state.withLock { state in
      defer { isEnded.store(true, ordering: .sequentiallyConsistent) }
      state.participant = nil
      sweeping.withLock { $0 = true }
      defer { recycler.drop() }
      guard let newest = state.newest else { return }
      guard protection.failure == nil else { return newest.lose(.region, errno: 0) }
      if !state.open.isEmpty, keepOwed(0..<newest.pageCount) == .held { newest.lose(.unmapped, errno: 0) }
      removeTarget(&state)
    }
  }
}

extension SnapshotSet {
  /// The set of a region, with the protection and the session that it builds on.
  static func of(_ region: Region) throws(PinError) -> SnapshotSet {
    let protection = try region.attachments.findOrMake(RegionProtection.self) { () throws(PinError) in
      RegionProtection(region: region, handler: try region.space.faultHandler())
    }
    let session = try region.attachments.findOrMake(TrackingSession.self) { () throws(PinError) in
      TrackingSession(region: region, protection: protection)
    }
    return try region.attachments.findOrMake(SnapshotSet.self) { () throws(PinError) in
      SnapshotSet(region: region, protection: protection, session: session)
    }
  }
}
