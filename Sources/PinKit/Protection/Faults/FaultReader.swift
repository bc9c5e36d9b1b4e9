internal import Synchronization

/// One thread that reads faults and resolves them.
///
/// Everything it needs is allocated before it starts; its loop allocates nothing and counts no references (K2). After a batch it
/// looks a little longer for the next one before it sleeps, as waking a sleeping thread costs more than resolving a fault; it
/// stops looking where that does not pay.
@safe final class FaultReader: @unchecked Sendable {  // the buffers belong to its own thread alone
  unowned let handler: FaultHandler
  var batch = FaultBatch()
  var pages = InlineArray<64, Int>(repeating: 0)
  var parked = ParkedFaults()
  /// For the bytes of pages that come from a store; untouched while there is none.
  let supplies: Mapping
  private var spinBudget = FaultReader.longestSpin
  private var lastIdle: UInt64 = 0
  /// What ``abandon()`` needs to know: whether the wrprotect lock of the domain at hand is held, and the pages of it that this thread may have
  /// claimed.
  var isHolding = false
  var claims = 0..<0

  /// When the batch at hand was begun, 0 while waiting: for the watchdog, which is late by one look where it sees an older one.
  let busySince = Atomic<UInt64>(0)
  /// The domain at hand, plus one.
  let busySlot = Atomic<Int>(0)
  /// It has ended, and nobody had asked it to.
  let hasEnded = Atomic<Bool>(false)
  /// It has nothing to do, others stay, and it goes. Set with the crew's lock held.
  let isLeaving = Atomic<Bool>(false)
  /// Whether nobody has to look at it any more but to join its thread: it leaves, or it ended unasked and was reported.
  var isGone: Bool {
    isLeaving.load(ordering: .relaxed) || (hasEnded.load(ordering: .acquiring) && busySlot.load(ordering: .relaxed) < 0)
  }
  /// It was asked to end, and has nothing left to do.
  private var isDone = false

  /// In nanoseconds.
  private static let longestSpin: UInt64 = 25_000
  /// What the crew counts of it, for ``abandon()``.
  private(set) var isWaiting = false
  private(set) var isServing = false
  /// How often in a row it has waited in vain.
  private var idle = 0
  /// In milliseconds: what wakes this thread may have been closed by other code, with everything it waits for.
  private static let longestWait: CInt = 500
  /// In nanoseconds: regions that fault all the time take turns.
  private static let longestVisit: UInt64 = 1_000_000
  /// A batch of this size calls for another reader.
  private static let backlog = 4

  /// The largest run of pages that one fault brings in, in bytes.
  static let supplySize = 512 << 10

  init(handler: FaultHandler) throws(PinError) {
    self.handler = handler
    supplies = try Mapping(count: Self.supplySize)
  }

  func start() throws(PinError) -> KernelThread {
    let context = unsafe Unmanaged.passRetained(self).toOpaque()
    do throws(PinError) {
      return unsafe try begin(context)
    } catch {
      unsafe Unmanaged<FaultReader>.fromOpaque(context).release()
      throw error
    }
  }

  private func begin(_ context: UnsafeMutableRawPointer) throws(PinError) -> KernelThread {
    try unsafe KernelThread(
      name: "pinkit-faults", context: context,
      body: { unsafe Unmanaged<FaultReader>.fromOpaque($0!).takeUnretainedValue().run() },
      onExit: {
        let reader = unsafe Unmanaged<FaultReader>.fromOpaque($0!).takeRetainedValue()
        reader.abandon()
        // The watchdog may be anywhere in its round as the readers of a space that closes go.
        if !reader.isDone { reader.hasEnded.store(true, ordering: .sequentiallyConsistent) }
        reader.handler.alarm.signal()
      })
  }

  private func run() {
    Kernel.enterFaultPath()
    while !handler.isStopping.load(ordering: .acquiring) {
      TestHooks.reach(.readerIdle)
      let ready = wait()
      if let ready, let place = FaultHandler.place(of: ready) { visit(place.slot, place.slice) }
      if !parked.isEmpty { retryParked() }
      idle = ready == nil && parked.isEmpty ? idle + 1 : 0
      if idle > handler.longestIdle, handler.crew.mayLeave(self) { break }
    }
    isDone = true
  }

  private func wait() -> UInt64? {
    handler.crew.beginWaiting()
    isWaiting = true
    let ready = handler.events.wait(milliseconds: parked.isEmpty ? Self.longestWait : 1)
    isWaiting = false
    if handler.crew.endWaiting(hasWork: ready != nil || !parked.isEmpty) { handler.alarm.signal() }
    return ready
  }

  private func visit(_ index: Int, _ slice: Int) {
    let slot = unsafe handler.slot(index)
    guard let domain = unsafe slot.pointee.enter() else { return }
    busySlot.store(index + 1, ordering: .relaxed)
    // The slot may have gone to another region since it was reported, which has fewer.
    if unsafe slice < domain.pointee.sliceCount, unsafe serve(domain.pointee, slot: index, slice: slice) {
      handler.rearm(unsafe domain.pointee.channels[slice].listening, slot: index, slice: slice)
    }
    busySlot.store(0, ordering: .relaxed)
    unsafe slot.pointee.leave()
  }

  /// Reads and resolves until nothing has come for a while. False if somebody else will have the descriptor reported again.
  private func serve(_ domain: borrowing FaultDomain, slot: Int, slice: Int) -> Bool {
    // The slot went to another region since it was reported, which has no userfaultfd yet, or never gets one.
    if domain.channels[slice].listening < 0 { return false }
    // Reading from a file of the program's would take away what is not ours (K5).
    guard domain.hasDescriptor(slice: slice) else { return false }
    if domain.hasSeals {
      Kernel.leaveFaultPath()
      domain.withSeals { $0.prepareThread() }
      Kernel.enterFaultPath()
    }
    domain.channels[slice].readers.add(1, ordering: .relaxed)
    handler.crew.beginServing()
    isServing = true
    defer {
      isServing = false
      handler.crew.endServing()
      domain.channels[slice].readers.subtract(1, ordering: .relaxed)
    }
    let started = Kernel.now()
    if started &- lastIdle < 2 * Self.longestSpin { spinBudget = Self.longestSpin }
    var idleSince: UInt64 = 0
    var hasServed = false
    while true {
      guard let hold = domain.lock.trySharedOrDefer() else { return false }
      isHolding = true
      defer { isHolding = false }
      let begun = Kernel.now()
      let keepsBefore = domain.keepsEnded.load(ordering: .acquiring)
      domain.unsettled.add(1, ordering: .sequentiallyConsistent)
      let descriptor = domain.channels[slice].listening
      let error = batch.read(from: descriptor)
      if batch.count > 0 { handleEvents(domain, keepsBefore: keepsBefore) }
      domain.unsettled.subtract(1, ordering: .sequentiallyConsistent)
      if batch.count > 0 {
        busySince.store(begun, ordering: .relaxed)
        let callsForHelp =
          batch.count >= Self.backlog && domain.channels[slice].readers.load(ordering: .relaxed) < FaultChannel.mostReaders
        if callsForHelp { handler.rearm(descriptor, slot: slot, slice: slice) }
        handleBatch(domain, slot: slot, slice: slice, holding: hold, begun: begun)
        busySince.store(0, ordering: .relaxed)
        idleSince = 0
        hasServed = true
        // Others wait in line.
        if begun &- started > Self.longestVisit { return true }
        continue
      }
      guard error == UffdResult.again.errno else {
        if handleReadError(error, domain, slice, descriptor) { continue }
        return domain.failure.load(ordering: .relaxed) == 0
      }
      // Whoever drops pages had it read of by a thread of its own: nothing more is to be expected here.
      if !hasServed { return true }
      if idleSince == 0 { idleSince = begun }
      if begun - idleSince >= spinBudget || !handler.crew.mayLook {
        spinBudget /= 2
        lastIdle = begun
        return true
      }
      Kernel.relax()
    }
  }

  /// True if reading can go on.
  private func handleReadError(_ error: CInt, _ domain: borrowing FaultDomain, _ slice: Int, _ descriptor: CInt) -> Bool {
    domain.counters.add(.readerErrors)
    switch error {
    case 0: return false
    case 4: return true  // EINTR
    // The region is being disconnected.
    case UffdResult.badDescriptor where descriptor < 0: return false
    case UffdResult.badDescriptor:
      if domain.channels[slice].useSpareDescriptor(insteadOf: descriptor) { return true }
      domain.fail(.descriptorClosed, errno: error)
    default: domain.fail(.refused, errno: error)
    }
    return false
  }
}
