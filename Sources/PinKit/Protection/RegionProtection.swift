internal import Logging
internal import Synchronization
internal import SystemPackage

/// The protection of one region: its fault domain, its descriptors, its place with the readers and in the signal path.
///
/// Unchecked: the domain's fields are atomics, and the rest is in `state`.
@safe final class RegionProtection: RegionAttachment, @unchecked Sendable {
  let addresses: AddressRange
  let domain: UnsafeMutablePointer<FaultDomain>
  let handler: FaultHandler
  private let inheritsAcrossFork: Bool
  let state = Mutex(State())
  private let forkGeneration = Kernel.forkGeneration
  let discardLock: FutexLock
  /// Shared pages on huge frames are protected by not being mapped.
  let hasHugeFrames: Bool
  let frames: RegionFrames?
  let armingSlice: ArmingSlice
  let isPool: Bool
  /// What snapshots decide before pages are dropped: an unretained ``DropDecision``, or 0. It lives as long as somebody may be inside the region.
  /// Who still finds 0 holds `Region.discarding`: no snapshot is taken before its pages are gone.
  let dropDecision = Atomic<UInt>(0)
  /// Held while the protection ends, outside the wrprotect lock: a tracker's stop() and unmap() may come at the same moment. The
  /// slot and the descriptors are somebody else's as soon as they have been let go.
  let ending = Mutex(())

  struct State {
    var slot: Int?
    var signalToken: Int64?
    var isReported = false
    var faultAround = FaultAroundPolicy.exact
  }

  init(region: Region, handler: FaultHandler) {
    addresses = region.addresses
    discardLock = region.discarding
    frames = region.frames
    if let frames { handler.pool = frames.pool }
    hasHugeFrames = region.backing.mayHaveHugeFrames
    isPool = region.backing.isPool
    armingSlice = region.space.configuration.armingSlice
    self.handler = handler
    inheritsAcrossFork = region.space.configuration.inheritsAcrossFork || region.isAdopted
    unsafe domain = .allocate(capacity: 1)
    unsafe domain.initialize(
      to: FaultDomain(
        region: region, counters: region.counters, patience: handler.patience, alarm: handler.alarm.alarm,
        drops: handler.drops))
  }

  deinit {
    unsafe domain.deinitialize(count: 1)
    unsafe domain.deallocate()
  }

  var slotIndex: Int? { state.withLock { $0.slot } }

  // MARK: Beginning and ending

  /// Connects the region to a way of delivery. Nothing is write-protected yet.
  ///
  /// - Throws: ``PinError``; everything is then as it was.
  func begin(_ delivery: FaultDelivery) throws(PinError) {
    try throwIfFailed("protect")
    if delivery == .inPlace || delivery == .mprotect || hasSource || hasSeals { try installSignalPath(delivery) }
    let slot = try handler.connect(self)
    state.withLock { $0.slot = slot }
    do throws(PinError) {
      if delivery != .mprotect { try openDescriptor(delivery, slot: slot) }
    } catch {
      handler.disconnect(slot: slot)
      state.withLock { $0.slot = nil }
      throw error
    }
    guard delivery == .mprotect else { return }
    MappingBudget.look()
    unsafe domain.pointee.delivery.store(delivery, ordering: .sequentiallyConsistent)
    // Not before: the watchdog drops it where the delivery is another one.
    handler.everyTick { [weak self] in self?.watchMappings() ?? false }
  }

  /// True while it is to be called again: seen late, once too often. Whoever begins by mprotect again has it called anew.
  private func watchMappings() -> Bool {
    guard unsafe domain.pointee.delivery.load(ordering: .relaxed) == .mprotect else { return false }
    MappingBudget.lookNowAndThen()
    return true
  }

  private func installSignalPath(_ delivery: FaultDelivery) throws(PinError) {
    try SignalFaults.install()
    if !SignalFaults.isInstalled {
      handler.logger.warning(
        "another SIGSEGV or SIGBUS handler was installed over PinKit's; it must pass on the faults that are not its own")
    }
    warnOfBlockedSignals(delivery)
    guard state.withLock({ $0.signalToken == nil }) else { return }
    let token = try unsafe SignalFaults.add(
      addresses, context: UnsafeMutableRawPointer(domain), unprotectInChild: inheritsAcrossFork,
      InPlaceDelivery.resolver)
    state.withLock { $0.signalToken = token }
  }

  /// Lifts all protection, wakes whoever waits, and disconnects. The page table forgets what was open.
  ///
  /// The signal path stays until the region goes: a signal may be on its way to a thread whose page has just been opened.
  func end() {
    guard forkGeneration == Kernel.forkGeneration else { return }
    ending.withLock { _ in endConnection() }
  }

  private func endConnection() {
    guard let slot = state.withLock({ $0.slot }) else { return }
    // A reader that died may have taken the lock with it.
    if failure == nil { exclusive { lift($0) } } else { liftFailed() }
    handler.disconnect(slot: slot, descriptors: unsafe domain.pointee.descriptors)
    closeDescriptors()
    state.withLock { $0.slot = nil }
  }

  func regionWillUnmap() {
    guard forkGeneration == Kernel.forkGeneration else { return }
    end()
    if let token = state.withLock({ $0.signalToken }) { SignalFaults.remove(token) }
    state.withLock { $0.signalToken = nil }
  }

  /// Runs `body` soon, on the watchdog's thread.
  func later(_ body: @escaping @Sendable () -> Void) { handler.later(body) }

  // MARK: Fault-around

  var faultAround: FaultAroundPolicy { state.withLock { $0.faultAround } }
  func setFaultAround(_ policy: FaultAroundPolicy) {
    state.withLock { $0.faultAround = policy }
    unsafe domain.pointee.faultAround.set(policy)
  }
  /// Whether faults may open neighbours where that saves copying them one by one.
  func setOpensChunks(_ allowed: Bool) { unsafe domain.pointee.opensChunks.store(allowed, ordering: .relaxed) }
  var faultAroundWindow: Int { unsafe domain.pointee.faultAround.currentWindow }
}

extension Region {
  /// The region's protection, made when it is first needed.
  func protection() throws(PinError) -> RegionProtection {
    try attachments.findOrMake(RegionProtection.self) { () throws(PinError) in
      RegionProtection(region: self, handler: try space.faultHandler())
    }
  }
}
