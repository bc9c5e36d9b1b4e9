internal import Synchronization

/// One thread that reads faults and resolves them.
///
/// Everything it needs is allocated before it starts; its loop allocates nothing and counts no references (K2). After a batch it
/// looks a little longer for the next one before it sleeps, as waking a sleeping thread costs more than resolving a fault; it
/// stops looking where that does not pay.
@safe final class FaultReader: @unchecked Sendable {  // the buffers belong to its own thread alone
  private unowned let handler: FaultHandler
  private var batch = FaultBatch()
  private var ready = InlineArray<16, UInt64>(repeating: 0)
  private var pages = InlineArray<64, Int>(repeating: 0)
  private var parked = ParkedFaults()
  /// For the bytes of pages that come from a store; untouched while there is none.
  private let supplies: Mapping
  private var spinBudget = FaultReader.longestSpin
  private var lastIdle: UInt64 = 0
  /// What ``abandon()`` needs to know: the regions of `ready` that are still to be visited, whether the wrprotect lock of the domain
  /// at hand is held, and the pages of it that this thread may have claimed.
  private var unvisited = 0..<0
  private var isHolding = false
  private var claims = 0..<0

  /// When the batch at hand was begun, 0 while waiting: for the watchdog.
  let busySince = Atomic<UInt64>(0)
  /// The domain at hand, plus one.
  let busySlot = Atomic<Int>(0)
  let hasEnded = Atomic<Bool>(false)

  /// In nanoseconds.
  private static let longestSpin: UInt64 = 25_000
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
        reader.hasEnded.store(true, ordering: .sequentiallyConsistent)
        reader.handler.alarm.signal()
      })
  }

  private func run() {
    Kernel.enterFaultPath()
    while !handler.isStopping.load(ordering: .acquiring) {
      TestHooks.reach(.readerIdle)
      let count = handler.events.wait(&ready, milliseconds: parked.isEmpty ? -1 : 1)
      unvisited = 0..<count
      while unvisited.lowerBound < unvisited.upperBound {
        let next = unvisited.lowerBound
        unvisited = next + 1..<count
        if ready[next] < UInt64(FaultHandler.capacity) { visit(Int(ready[next])) }
      }
      if !parked.isEmpty { retryParked() }
    }
  }

  /// Runs on the thread as it ends, however it does. In the middle of a fault it held the wrprotect lock and the claims of a page, and
  /// its own stack is gone: the region is failed first, then everything is let go, so that whoever waits for it finds the
  /// failure. What it had only taken note of goes back to the other readers.
  private func abandon() {
    let busy = busySlot.load(ordering: .relaxed) - 1
    if busy >= 0 {
      let slot = unsafe handler.slot(busy)
      if let domain = unsafe slot.pointee.enter() {
        unsafe abandon(domain.pointee)
        unsafe slot.pointee.leave()
      }
      unsafe slot.pointee.leave()
    }
    for index in unvisited where ready[index] < UInt64(FaultHandler.capacity) { giveBack(Int(ready[index])) }
    while !parked.isEmpty {
      let fault = parked.removeFirst()
      giveBack(fault.slot, page: fault.page, of: fault.region)
    }
  }

  private func abandon(_ domain: borrowing FaultDomain) {
    domain.fail(.readerDied, errno: 0)
    guard isHolding else { return }
    for page in claims where domain.table[page].contains(.claimed) { domain.table.releaseClaim(page) }
    domain.lock.abandonShared()
  }

  private func giveBack(_ index: Int, page: Int = 0, of region: UInt64? = nil) {
    let slot = unsafe handler.slot(index)
    guard let domain = unsafe slot.pointee.enter() else { return }
    if unsafe domain.pointee.region == region { unsafe FaultPath.wake(page..<page + 1, in: domain.pointee) }
    unsafe handler.rearm(domain.pointee.listening, slot: index)
    unsafe slot.pointee.leave()
  }

  private func visit(_ index: Int) {
    let slot = unsafe handler.slot(index)
    guard let domain = unsafe slot.pointee.enter() else { return }
    busySlot.store(index + 1, ordering: .relaxed)
    if unsafe serve(domain.pointee, slot: index) { unsafe handler.rearm(domain.pointee.listening, slot: index) }
    busySlot.store(0, ordering: .relaxed)
    unsafe slot.pointee.leave()
  }

  /// Reads and resolves until nothing has come for a while. False if somebody else will have the descriptor reported again.
  private func serve(_ domain: borrowing FaultDomain, slot: Int) -> Bool {
    let started = Kernel.now()
    if started &- lastIdle < 2 * Self.longestSpin { spinBudget = Self.longestSpin }
    var idleSince: UInt64 = 0
    while true {
      guard let hold = domain.lock.trySharedOrDefer() else { return false }
      isHolding = true
      defer { isHolding = false }
      let begun = Kernel.now()
      let keepsBefore = domain.keepsEnded.load(ordering: .acquiring)
      domain.unsettled.add(1, ordering: .sequentiallyConsistent)
      let error = batch.read(from: domain.descriptor.load(ordering: .acquiring))
      if batch.count > 0 { handleEvents(domain, keepsBefore: keepsBefore) }
      domain.unsettled.subtract(1, ordering: .sequentiallyConsistent)
      if batch.count > 0 {
        busySince.store(begun, ordering: .relaxed)
        if batch.count >= Self.backlog { handler.rearm(domain.listening, slot: slot) }
        handleBatch(domain, slot: slot, holding: hold, begun: begun)
        busySince.store(0, ordering: .relaxed)
        idleSince = 0
        // Others wait in line.
        if begun &- started > Self.longestVisit { return true }
        continue
      }
      guard error == UffdResult.again.errno else {
        if handleReadError(error, domain) { continue }
        return domain.failure.load(ordering: .relaxed) == 0
      }
      if idleSince == 0 { idleSince = begun }
      if begun - idleSince >= spinBudget {
        spinBudget /= 2
        lastIdle = begun
        return true
      }
      Kernel.relax()
    }
  }

  /// True if reading can go on.
  private func handleReadError(_ error: CInt, _ domain: borrowing FaultDomain) -> Bool {
    domain.counters.add(.readerErrors)
    switch error {
    case 0: return false
    case 4: return true  // EINTR
    case UffdResult.badDescriptor:
      if domain.useSpareDescriptor() { return true }
      domain.fail(.descriptorClosed, errno: error)
    default: domain.fail(.refused, errno: error)
    }
    return false
  }

  /// A page fault may have been queued before an event that happened earlier: events first.
  private func handleEvents(_ domain: borrowing FaultDomain, keepsBefore: UInt64) {
    for index in 0..<batch.count { handleEvent(batch[index], domain, keepsBefore: keepsBefore) }
  }

  private func handleBatch(
    _ domain: borrowing FaultDomain, slot: Int, holding hold: borrowing WriteProtectLock.SharedHold, begun: UInt64
  ) {
    domain.counters.add(.batches)
    domain.counters.add(.messages, batch.count)
    var faults = 0
    for index in 0..<batch.count {
      guard case .pageFault(let address, let flags, _) = batch[index] else { continue }
      guard domain.addresses.contains(address) else {
        // The number names another region's userfaultfd now, until the watchdog sees it. Let that thread fault again.
        let page = address / UInt(domain.pageSize) * UInt(domain.pageSize)
        Uffd.wake(
          domain.descriptor.load(ordering: .acquiring), AddressRange(start: page, count: domain.pageSize))
        continue
      }
      if domain.hasSource, !flags.contains(.writeProtect), !flags.contains(.minor) {
        supply(domain.page(at: address), domain, slot: slot)
        continue
      }
      let isWrite = flags.contains(.write) || !flags.contains(.minor)
      insertSorted(domain.page(at: address) << 1 | (isWrite ? 1 : 0), count: &faults)
    }
    for index in 0..<faults {
      let page = pages[index] >> 1
      claims = page..<page + 1
      let isWrite = pages[index] & 1 != 0
      var openedAt: UInt64 = 0
      let resolution = FaultPath.resolve(
        page: page, isWrite: isWrite, in: domain, holding: hold, noteClaims: { claims = $0 },
        noteOpen: {
          openedAt = Kernel.now()
          // Another reader serves who comes while this one copies neighbours.
          handler.rearm(domain.listening, slot: slot)
        })
      if !isWrite { domain.counters.add(.minorFaults) }
      settle(resolution, page: page, isWrite: isWrite, domain, slot: slot)
      domain.counters.add(.handlerThreadFaults)
      domain.counters.addLatency((openedAt == 0 ? Kernel.now() : openedAt) - begun)
    }
  }

  /// A page that is not there.
  private func supply(_ page: Int, _ domain: borrowing FaultDomain, slot: Int) {
    claims = page..<page + 1
    let resolution = domain.withSource { $0.supply(page, through: supplies.range, in: domain) } ?? .gone
    domain.counters.add(.missingFaults)
    // There is no event to wait for: whoever faulted tries again.
    settle(resolution == .retry ? .gone : resolution, page: page, domain, slot: slot)
  }

  /// Keeps the faults of a batch (page << 1 | is a write) in order and each of them once.
  @inline(__always) private func insertSorted(_ page: Int, count: inout Int) {
    var at = count
    while at > 0, pages[at - 1] > page { at -= 1 }
    if at > 0, pages[at - 1] == page { return }
    var move = count
    while move > at {
      pages[move] = pages[move - 1]
      move -= 1
    }
    pages[at] = page
    count += 1
  }

  private func settle(
    _ resolution: FaultResolution, page: Int, isWrite: Bool = true, _ domain: borrowing FaultDomain, slot: Int
  ) {
    switch resolution {
    case .opened, .alreadyOpen, .elsewhere, .failed: return
    case .gone, .denied: FaultPath.wake(page..<page + 1, in: domain)
    case .retry, .held:
      if resolution == .held { domain.counters.add(.heldWrites) }
      let fault = ParkedFaults.Fault(
        slot: slot, region: domain.region, page: page, isWrite: isWrite,
        generation: domain.generation.load(ordering: .relaxed),
        deadline: resolution == .held ? .max : Kernel.now() + domain.patience)
      // With no room the thread is woken: it faults again and queues a new message.
      if !parked.append(fault) { FaultPath.wake(page..<page + 1, in: domain) }
    }
  }

  private func handleEvent(_ message: FaultMessage, _ domain: borrowing FaultDomain, keepsBefore: UInt64) {
    switch message {
    case .pageFault: return
    case .remove(let range):
      domain.counters.add(.removeEvents)
      TestHooks.reach(.removing, page: domain.page(at: max(range.start, domain.addresses.start)))
      domain.recordDiscard(range, keepsBefore: keepsBefore)
    case .unmap(let range):
      domain.counters.add(.unmapEvents)
      if range.overlaps(domain.addresses) { failMapping(domain) }
    case .remap:
      domain.counters.add(.remapEvents)
      failMapping(domain)
    case .fork(let descriptor): Uffd.close(descriptor)
    case .unknown: domain.counters.add(.unknownEvents)
    }
  }

  /// Other code has changed the mappings, and who was keeping a page at that moment may have found the bytes of another.
  private func failMapping(_ domain: borrowing FaultDomain) {
    domain.fail(.mappingChanged, errno: 0)
    domain.withOwedBytes { $0.lose(0..<domain.table.pageCount, isQuiet: false) }
  }

  /// Tries again what the kernel could not do while an event was in flight.
  private func retryParked() {
    let count = parked.count
    for _ in 0..<count {
      let fault = parked.removeFirst()
      let slot = unsafe handler.slot(fault.slot)
      guard let domain = unsafe slot.pointee.enter() else { continue }
      busySlot.store(fault.slot + 1, ordering: .relaxed)
      unsafe retry(fault, domain.pointee)
      busySlot.store(0, ordering: .relaxed)
      unsafe slot.pointee.leave()
    }
  }

  private func retry(_ fault: ParkedFaults.Fault, _ domain: borrowing FaultDomain) {
    // The slot may have gone to another region, which need not even have that page; ending the old one woke the thread.
    guard domain.region == fault.region else { return }
    guard let hold = domain.lock.trySharedOrDefer() else {
      _ = parked.append(fault)
      return
    }
    isHolding = true
    defer { isHolding = false }
    claims = fault.page..<fault.page + 1
    if domain.generation.load(ordering: .relaxed) != fault.generation {
      // An exclusive operation ran meanwhile: let the thread fault anew rather than resolve a fault it may have got over.
      FaultPath.wake(fault.page..<fault.page + 1, in: domain)
      return
    }
    if Kernel.now() > fault.deadline {
      domain.fail(domain.causeOfDelay, errno: UffdResult.again.errno)
      return
    }
    let resolution = FaultPath.resolve(
      page: fault.page, isWrite: fault.isWrite, in: domain, holding: hold, noteClaims: { claims = $0 })
    if resolution == .retry || resolution == .held {
      _ = parked.append(fault)
    } else {
      settle(resolution, page: fault.page, isWrite: fault.isWrite, domain, slot: fault.slot)
    }
  }
}

/// Faults that wait for an event to pass, in a ring of fixed size.
struct ParkedFaults {
  struct Fault {
    var slot: Int
    var region: UInt64
    var page: Int
    var isWrite: Bool
    var generation: UInt64
    var deadline: UInt64
  }
  private var ring = InlineArray<256, Fault>(
    repeating: Fault(slot: 0, region: 0, page: 0, isWrite: true, generation: 0, deadline: 0))
  private var first = 0
  private(set) var count = 0

  var isEmpty: Bool { count == 0 }

  /// False if there is no room.
  mutating func append(_ fault: Fault) -> Bool {
    guard count < 256 else { return false }
    ring[(first + count) & 255] = fault
    count += 1
    return true
  }

  mutating func removeFirst() -> Fault {
    let fault = ring[first]
    first = (first + 1) & 255
    count -= 1
    return fault
  }
}
