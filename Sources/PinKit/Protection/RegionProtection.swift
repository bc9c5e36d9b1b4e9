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
  private let state = Mutex(State())
  private let forkGeneration = Kernel.forkGeneration
  let discardLock: FutexLock
  /// Shared pages on huge frames are protected by not being mapped.
  private let hasHugeFrames: Bool
  private let frames: RegionFrames?
  private let isPool: Bool
  /// Held while the protection ends, outside the wrprotect lock: a tracker's stop() and unmap() may come at the same moment. The
  /// slot and the descriptors are somebody else's as soon as they have been let go.
  private let ending = Mutex(())

  private struct State {
    var slot: Int?
    var signalToken: Int64?
    var isReported = false
    var faultAround = FaultAroundPolicy.exact
    /// Of the userfaultfd, to know its descriptors from numbers that have gone to another one.
    var identity: UInt64 = 0
  }

  init(region: Region, handler: FaultHandler) {
    addresses = region.addresses
    discardLock = region.discarding
    frames = region.frames
    if let frames { handler.pool = frames.pool }
    hasHugeFrames = region.backing.mayHaveHugeFrames
    isPool = region.backing.isPool
    self.handler = handler
    inheritsAcrossFork = region.space.configuration.inheritsAcrossFork || region.isAdopted
    unsafe domain = .allocate(capacity: 1)
    unsafe domain.initialize(
      to: FaultDomain(
        region: region, counters: handler.counters, patience: handler.patience, alarm: handler.alarm.descriptor))
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
      handler.disconnect(slot: slot, descriptor: -1)
      state.withLock { $0.slot = nil }
      throw error
    }
    unsafe domain.pointee.delivery.store(delivery, ordering: .sequentiallyConsistent)
  }

  /// Whether pages come from a store: those that are not there trap, too.
  private var hasSource: Bool { unsafe domain.pointee.hasSource }

  /// Whether pages may be sealed: they trap by not being mapped.
  private var hasSeals: Bool { unsafe domain.pointee.hasSeals }

  private func installSignalPath(_ delivery: FaultDelivery) throws(PinError) {
    try SignalFaults.install()
    if !SignalFaults.isInstalled {
      handler.logger.warning(
        "another SIGSEGV or SIGBUS handler was installed over PinKit's; it must pass on the faults that are not its own")
    }
    guard state.withLock({ $0.signalToken == nil }) else { return }
    let token = try unsafe SignalFaults.add(
      addresses, context: UnsafeMutableRawPointer(domain), unprotectInChild: inheritsAcrossFork,
      InPlaceDelivery.resolver)
    state.withLock { $0.signalToken = token }
  }

  private func openDescriptor(_ delivery: FaultDelivery, slot: Int) throws(PinError) {
    var features: Userfaultfd.Features = [.pagefaultFlagWP, .wpUnpopulated, .eventRemap]
    // Pages of a pool go to other frames in the middle of a fault, which must not wait until somebody has read of it.
    if !isPool { features.insert(.eventUnmap) }
    if !(hasHugeFrames && delivery != .asynchronous), !hasSeals { features.insert(.eventRemove) }
    if hasHugeFrames || hasSeals, delivery != .asynchronous { features.insert(.minorShmem) }
    if hasSource { features.insert(.missingShmem) }
    if delivery == .inPlace { features.insert(.sigbus) }
    if delivery == .asynchronous { features.insert(.wpAsync) }
    if unsafe domain.pointee.isPrivateAnonymous {
      // Merging replaces the page-table entry without its protection. Refused where the kernel cannot merge.
      try? Memory.advise(addresses, .unmergeable)
    } else {
      features.insert(.wpHugetlbfsShmem)
    }
    let access = try Uffd.withoutForks { () throws(PinError) in try open(features, slot: slot) }
    if access == .userModeOnly {
      handler.logger.warning(
        "userfaultfd is open in user mode only: system calls that write into protected memory fail with EFAULT")
    }
  }

  /// A child that was forked in between would keep a descriptor that it does not know of.
  private func open(_ features: Userfaultfd.Features, slot: Int) throws(PinError) -> Userfaultfd.Access {
    let made = try Userfaultfd(features: features)
    try made.register(addresses, for: unsafe Self.traps(domain.pointee))
    // A high number: out of the way of code that closes and reuses low ones.
    let descriptor = try Uffd.duplicate(made.descriptor)
    let access = made.access
    let spare = made.release()
    do throws(PinError) {
      try Uffd.closeInChild(descriptor)
      try Uffd.closeInChild(spare)
      try handler.listen(descriptor, slot: slot)
    } catch {
      _ = Uffd.unregister(descriptor, addresses)
      Self.close([descriptor, spare])
      throw error
    }
    state.withLock { state in
      state.identity = Uffd.identity(descriptor)
      unsafe domain.pointee.descriptor.store(descriptor, ordering: .sequentiallyConsistent)
      unsafe domain.pointee.spareDescriptor.store(spare, ordering: .sequentiallyConsistent)
    }
    return access
  }

  private func closeDescriptors() {
    // Under the lock: the watchdog must not take numbers that are being closed here for closed by somebody else.
    let open = state.withLock { _ in
      [
        unsafe domain.pointee.descriptor.exchange(-1, ordering: .sequentiallyConsistent),
        unsafe domain.pointee.spareDescriptor.exchange(-1, ordering: .sequentiallyConsistent),
      ]
    }
    Uffd.withoutForks { Self.close(open) }
  }

  private static func close(_ descriptors: [CInt]) {
    for open in descriptors where open >= 0 {
      Uffd.forgetInChild(open)
      Uffd.close(open)
    }
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
    if failure == nil { exclusive { lift($0) } } else { unsafe lift(domain.pointee) }
    let descriptor = unsafe domain.pointee.descriptor.load(ordering: .acquiring)
    handler.disconnect(slot: slot, descriptor: descriptor)
    closeDescriptors()
    state.withLock { $0.slot = nil }
  }

  private func lift(_ domain: borrowing FaultDomain) {
    // Where pages come from a store, those that are not there would read as zeros from now on, to whoever still has a pointer.
    // Sealed bytes would be read as if they were plain.
    if domain.hasSource || domain.withSeals({ $0.mayHaveSealedBytes }) == true {
      Memory.makeInaccessible(addresses)
    } else if domain.sharing.load(ordering: .acquiring) != 0 {
      // Frames that others have may not be written any more, whoever tries.
      closeToWriters(domain)
    }
    // Unprotected first: a signal handler that saw nothing to resolve while its page is still protected would give up on it.
    switch domain.delivery.load(ordering: .sequentiallyConsistent) {
    case .none: break
    case .mprotect: liftMprotect(domain)
    case .handlerThread, .inPlace, .asynchronous: unregister(domain)
    }
    domain.delivery.store(.none, ordering: .sequentiallyConsistent)
    let table = domain.table
    table.open.drain { pages in for page in pages { table.remove(.openAround, at: page) } }
  }

  /// Lets nobody write pages whose frames others may have: the region is being unmapped, or has failed.
  private func closeToWriters(_ domain: borrowing FaultDomain) {
    if Memory.protect(addresses, .read) != 0 { Memory.makeInaccessible(addresses) }
  }

  private func unregister(_ domain: borrowing FaultDomain) {
    defer { if !domain.hasSeals { domain.hasMinorFaults.store(false, ordering: .sequentiallyConsistent) } }
    var descriptor = domain.descriptor.load(ordering: .acquiring)
    if !Uffd.isUserfaultfd(descriptor) { descriptor = domain.spareDescriptor.load(ordering: .acquiring) }
    // Removes protection from the entries; memory unmapped behind our back is skipped piece by piece.
    if Uffd.unregister(descriptor, addresses) != .done {
      for mapping in (try? ProcessMaps.mappings(in: addresses)) ?? [] {
        _ = Uffd.unregister(descriptor, mapping.range.clamped(to: addresses))
      }
    }
    // Of its own accord the kernel wakes those only who wait for missing pages.
    Uffd.wake(descriptor, addresses)
  }

  /// Everything becomes writable but what the user protected.
  private func liftMprotect(_ domain: borrowing FaultDomain) {
    if domain.sharing.load(ordering: .acquiring) != 0 { return }
    var start = 0
    let table = domain.table
    guard table.hasDeniedPages else {
      _ = Memory.protect(addresses, .readWrite)
      return
    }
    for page in 0...table.pageCount {
      let stops = page == table.pageCount || !table[page].isDisjoint(with: .denied)
      if stops, start < page { _ = Memory.protect(domain.addresses(of: start..<page), .readWrite) }
      if stops { start = page + 1 }
    }
  }

  func regionWillUnmap() {
    guard forkGeneration == Kernel.forkGeneration else { return }
    end()
    if let token = state.withLock({ $0.signalToken }) { SignalFaults.remove(token) }
    state.withLock { $0.signalToken = nil }
  }

  // MARK: Exclusive operations

  /// Runs `body` with the wrprotect lock held exclusively (W1).
  func exclusive<Result, Failure: Error>(
    file: StaticString = #fileID, line: UInt = #line,
    _ body: (borrowing FaultDomain) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try unsafe domain.pointee.lock.withExclusive(rearm: { listenAgain() }, file: file, line: line) { () throws(Failure) in
      try begun(body)
    }
  }

  /// The same, `nil` rather than wait.
  func tryExclusive<Result, Failure: Error>(
    file: StaticString = #fileID, line: UInt = #line,
    _ body: (borrowing FaultDomain) throws(Failure) -> Result
  ) throws(Failure) -> Result? {
    try unsafe domain.pointee.lock.withExclusiveIfFree(rearm: { listenAgain() }, file: file, line: line) {
      () throws(Failure) in
      try begun(body)
    }
  }

  private func begun<Result, Failure: Error>(
    _ body: (borrowing FaultDomain) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    // A pin is counted without the lock, and then looks here: one of the two sees the other.
    unsafe domain.pointee.generation.add(1, ordering: .sequentiallyConsistent)
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    unsafe domain.pointee.exclusiveSince.store(Kernel.now(), ordering: .relaxed)
    return try unsafe body(domain.pointee)
  }

  /// Runs `body`, which collects, while nobody drops pages.
  func withoutDiscards<Result>(_ body: () throws(PinError) -> Result) throws(PinError) -> Result {
    _ = discardLock.lockExclusive()
    defer { discardLock.unlockExclusive() }
    return try body()
  }

  /// The same, if nobody drops pages at this moment.
  func withoutDiscardsIfFree(_ body: () -> Void) {
    guard discardLock.tryLockExclusive() else { return }
    defer { discardLock.unlockExclusive() }
    body()
  }

  /// Notes pages that have just been dropped. The shared lock makes the note whole before the next collection looks for it.
  func recordDiscard(_ pages: Range<Int>) {
    Kernel.withSignalsBlocked {
      let hold = unsafe domain.pointee.lock.lockShared()
      unsafe domain.pointee.table.discarded.insert(pages)
      _ = consume hold
    }
  }

  /// Puts huge mappings back that protecting their pages has dropped.
  func restoreHugeMappings() {
    guard let frames, unsafe domain.pointee.lostHugeMappings.load(ordering: .relaxed) else { return }
    // Not beside the end of the protection: what is moved in must be registered, and mapped.
    ending.withLock { _ in
      guard slotIndex != nil, unsafe domain.pointee.lostHugeMappings.exchange(false, ordering: .relaxed) else { return }
      HugeFrames.restore(frames, self)
    }
  }

  /// Drops pages whose frames others may have too, and may get at any time; false if the region shares none.
  func leaveFrames(_ pages: Range<Int>, _ invalidation: inout Invalidation?) throws(PinError) -> Bool {
    let begun = Kernel.now()
    var start = pages.lowerBound
    while start < pages.upperBound {
      let end = min(start + 512, pages.upperBound)
      let part = start..<end
      guard let result = Kernel.withSignalsBlocked({ unsafe leave(part, domain.pointee, &invalidation) }) else {
        return false
      }
      if UffdResult(result) == .again, unsafe Kernel.now() - begun < domain.pointee.patience {
        // The frame that a page would go to is being given back, or somebody looks it up at this moment.
        Kernel.pause(nanoseconds: 20_000)
        continue
      }
      try PinError.check(result, "mmap", addresses)
      start = end
    }
    return true
  }

  private func leave(
    _ pages: Range<Int>, _ domain: borrowing FaultDomain, _ invalidation: inout Invalidation?
  ) -> CInt? {
    domain.lock.withShared { _ in domain.withSharing { $0.leave(pages, in: domain, &invalidation) } }
  }

  /// Replaces the first-write callbacks. When it returns, no earlier one is running.
  func setCallbacks(_ callbacks: FirstWriteCallbacks?) {
    let new = callbacks.map { UInt(bitPattern: unsafe Unmanaged.passRetained($0).toOpaque()) } ?? 0
    let old = exclusive { domain in
      let old = domain.callbacks.exchange(new, ordering: .sequentiallyConsistent)
      if new != 0 { domain.table.forgetTold() }
      return old
    }
    if old != 0 { unsafe Unmanaged<FirstWriteCallbacks>.fromOpaque(UnsafeRawPointer(bitPattern: old)!).release() }
  }

  /// What a userfaultfd is to report of a region.
  private static func traps(_ domain: borrowing FaultDomain) -> Userfaultfd.RegisterMode {
    var traps = Userfaultfd.RegisterMode.writeProtect
    if domain.hasMinorFaults.load(ordering: .relaxed) { traps.insert(.minor) }
    if domain.hasSource { traps.insert(.missing) }
    return traps
  }

  /// Registers what went to other frames since the last time. Under the exclusive lock; false if the kernel asked to try again.
  static func registerAgain(_ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    guard domain.needsRegistration.load(ordering: .relaxed) else { return true }
    let result = Uffd.register(domain.descriptor.load(ordering: .acquiring), domain.addresses, traps(domain))
    guard try domain.settle(result, "UFFDIO_REGISTER", domain.addresses) else { return false }
    domain.needsRegistration.store(false, ordering: .relaxed)
    return true
  }

  /// Calls `body` under the exclusive lock until it returns true. Between tries the lock is free, as what the kernel waits for (an
  /// event to be read, its originator to run) may need the readers.
  ///
  /// - Throws: What `body` throws; `.timedOut`.
  func untilDone(_ body: (borrowing FaultDomain) throws(PinError) -> Bool) throws(PinError) {
    let begun = Kernel.now()
    while true {
      try throwIfFailed("protect pages")
      let isDone: Bool
      do throws(PinError) {
        isDone = try exclusive { domain throws(PinError) in
          // The reader that this thread has waited for may have ended.
          try throwIfFailed("protect pages")
          return try body(domain)
        }
      } catch {
        // The cause, where there is one, says more than the refusal that it led to.
        try throwIfFailed("protect pages")
        throw error
      }
      if isDone { return }
      if unsafe Kernel.now() - begun > domain.pointee.patience {
        throw PinError(
          .timedOut, operation: "protect pages", range: addresses,
          advice: "A thread that unmaps or discards this memory has stopped half-way; nothing was lost, try again.")
      }
      Kernel.pause(nanoseconds: 50_000)
    }
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

  // MARK: Failure

  var failure: PinError? {
    let value = unsafe domain.pointee.failure.load(ordering: .acquiring)
    guard value != 0, let kind = FaultDomain.Failure(rawValue: UInt32(value >> 32)) else { return nil }
    let errno = CInt(truncatingIfNeeded: value & 0xffff_ffff)
    let code: PinError.Code = kind.code
    return PinError(
      code, operation: "serve faults (\(kind))", errno: errno == 0 ? nil : Errno(rawValue: errno), range: addresses,
      advice: kind.advice)
  }

  func throwIfFailed(_ operation: String) throws(PinError) {
    if let failure { throw failure }
  }

  func fail(_ failure: FaultDomain.Failure) { unsafe domain.pointee.fail(failure, errno: 0) }

  /// The failure, the first time it is asked for.
  func takeUnreportedFailure() -> PinError? {
    guard let failure else { return nil }
    return state.withLock { state in
      defer { state.isReported = true }
      return state.isReported ? nil : failure
    }
  }

  /// Lets everyone go on without protection; the failure stays on record.
  func releaseAfterFailure() {
    // Not beside the end of the region: what is mapped over must still be its memory.
    ending.withLock { _ in if slotIndex != nil { unsafe lift(domain.pointee) } }
  }

  /// Puts a new spare in the place of a descriptor that other code has closed.
  func repairDescriptors() {
    let isRepaired = Uffd.withoutForks { state.withLock { state in unsafe repair(domain.pointee, state.identity) } }
    guard isRepaired else { return }
    // A reader that went by the old number may have set another region's place in the epoll set, and left its own unset.
    for protection in handler.protections { protection.listenAgain() }
    handler.logger.error(
      "a userfaultfd of \(addresses) was closed by other code in this process; its spare took over. Find the code that closes descriptors it does not own."
    )
  }

  private func listenAgain() {
    state.withLock { state in
      let descriptor = unsafe domain.pointee.descriptor.load(ordering: .acquiring)
      if let slot = state.slot, descriptor >= 0 { handler.rearm(descriptor, slot: slot) }
    }
  }

  private func repair(_ domain: borrowing FaultDomain, _ identity: UInt64) -> Bool {
    let descriptor = domain.descriptor.load(ordering: .acquiring)
    let spare = domain.spareDescriptor.load(ordering: .acquiring)
    guard descriptor >= 0 else { return false }
    let isOurs = { (number: CInt) in number >= 0 && Uffd.identity(number) == identity && Uffd.isUserfaultfd(number) }
    if isOurs(descriptor), isOurs(spare) { return false }
    if !isOurs(descriptor) {
      guard isOurs(spare), domain.useSpareDescriptor() else {
        domain.fail(.descriptorClosed, errno: UffdResult.badDescriptor)
        return false
      }
    }
    let good = domain.descriptor.load(ordering: .acquiring)
    guard let new = try? Uffd.duplicate(good) else { return false }
    do throws(PinError) { try Uffd.closeInChild(new) } catch {
      Uffd.close(new)
      return false
    }
    domain.spareDescriptor.store(new, ordering: .sequentiallyConsistent)
    return true
  }
}

extension Region {
  /// The region's protection, made when it is first needed.
  func protection() throws(PinError) -> RegionProtection {
    try attachments.findOrMake(RegionProtection.self) { () throws(PinError) in
      RegionProtection(region: self, handler: try space.faultHandler())
    }
  }
}

extension FaultDomain.Failure {
  var code: PinError.Code {
    switch self {
    case .mappingChanged: .mappingChanged
    case .timedOut: .timedOut
    case .subscriberBlocked: .subscriberFailed
    default: .handlerLost
    }
  }

  var advice: String {
    switch self {
    case .descriptorClosed:
      "Other code in this process closed PinKit's userfaultfd. What was written since cannot be known."
    case .refused: "The kernel refused to lift the protection of a page."
    case .timedOut: "The kernel kept asking to retry; the thread that unmaps or discards memory may be stopped."
    case .readerDied: "A thread that serves faults ended."
    case .subscriberBlocked:
      "A subscriber answered every invalidation with .wouldBlock or an error for as long as the patience of a fault: it waits for something that waits for the fault."
    case .mappingChanged:
      "Use Region.unmap() and Region.discard(_:), or end the management before munmap(2), mremap(2) or mmap(2) over it."
    }
  }
}
