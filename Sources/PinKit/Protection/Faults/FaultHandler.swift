internal import Logging
internal import Synchronization

/// The threads that serve the faults of an address space: a crew of readers, shared by all regions, and a watchdog.
///
/// Each slice of a region has its own userfaultfd; the readers wait for all of them in one epoll set. It is reported to one reader, which
/// stays with it while faults keep coming, and calls for another one when they come faster than it works.
@safe final class FaultHandler: AddressSpaceService, @unchecked Sendable {  // slots hold atomics only
  static let capacity = 4096
  /// The epoll data of the descriptor that stops the readers.
  static let stopData = UInt64.max

  let counters: SpaceCounters
  let policy: AddressSpace.FailurePolicy
  let patience: Double
  /// In seconds.
  let metricsInterval: Double
  let logger: Logger
  let events: EventSet
  let alarm: Bell
  let stop: EventDescriptor
  let isStopping = Atomic<Bool>(false)
  let drops = MappingDrops()
  let snapshots = WatchedSnapshots()
  let crew: ReaderCrew
  /// After how many waits in vain a reader goes that is not needed.
  let longestIdle: Int
  private let forkGeneration = Kernel.forkGeneration
  private let slots: UnsafeMutablePointer<DomainSlot>
  private let slotOwners = Mutex<[Int: WeakProtection]>([:])
  private let threads = Mutex<Threads>(Threads())
  /// Frames that die in the fault path are given back by the watchdog.
  private let framePool = Mutex<FramePool?>(nil)
  private let ticks = Mutex<[@Sendable () -> Bool]>([])
  private let errands = Mutex<[@Sendable () -> Void]>([])

  private struct Threads {
    var watchdog: KernelThread?
    /// Watchdogs that ended before their time.
    var ended: [KernelThread] = []
  }
  private struct WeakProtection: Sendable { weak var protection: RegionProtection? }

  init(configuration: AddressSpace.Configuration, counters: SpaceCounters) throws(PinError) {
    FaultTypes.prepare()
    self.counters = counters
    policy = configuration.failurePolicy
    patience = configuration.patience
    metricsInterval = configuration.metricsInterval
    crew = ReaderCrew(most: configuration.readerCount)
    longestIdle = configuration.longestIdle
    logger = configuration.logger
    events = try EventSet()
    alarm = Bell()
    stop = try EventDescriptor()
    unsafe slots = .allocate(capacity: Self.capacity)
    for index in 0..<Self.capacity { unsafe (slots + index).initialize(to: DomainSlot()) }
    try events.add(stop.descriptor, data: Self.stopData, once: false)
    do throws(PinError) { try start() } catch {
      // Those that did start use this object.
      shutDown()
      throw error
    }
  }

  deinit {
    for index in 0..<Self.capacity { unsafe (slots + index).deinitialize(count: 1) }
    unsafe slots.deallocate()
  }

  private func start() throws(PinError) {
    try crew.start(for: self)
    let watchdog = try Watchdog.start(for: self)
    threads.withLock { $0.watchdog = watchdog }
  }

  /// Stops every thread. The regions are unmapped: no domain is connected any more.
  func shutDown() {
    guard !isStopping.exchange(true, ordering: .sequentiallyConsistent) else { return }
    // In a child of fork() the threads do not exist.
    guard forkGeneration == Kernel.forkGeneration else { return }
    // A watchdog that was started last may join those before it: each is joined by who takes it out.
    let threads = self.threads.withLock { threads in
      defer { threads.ended = [] }
      return threads
    }
    stop.signal()
    crew.shutDown()
    alarm.signal()
    for thread in threads.ended { thread.join() }
    threads.watchdog?.join()
    drops.shutDown()
    self.threads.withLock { $0 = Threads() }
  }

  /// Puts another watchdog in the place of one that ended; on the thread that ends (K3).
  func replaceWatchdog(_ start: () throws(PinError) -> KernelThread) {
    let isReplaced = threads.withLock { threads -> Bool? in
      // Whoever shuts down joins what is there by then.
      if isStopping.load(ordering: .sequentiallyConsistent) { return nil }
      guard let new = try? start() else { return false }
      if let old = threads.watchdog { threads.ended.append(old) }
      threads.watchdog = new
      return true
    }
    guard let isReplaced else { return }
    logger.critical(
      "the watchdog ended unexpectedly; \(isReplaced ? "there is a new one" : "there is no thread for a new one: nobody notices any more what else ends")"
    )
  }

  func joinEndedWatchdogs() {
    let ended = threads.withLock { threads in
      defer { threads.ended = [] }
      return threads.ended
    }
    for thread in ended { thread.join() }
  }

  // MARK: The watchdog's errands

  var pool: FramePool? {
    get { framePool.withLock { $0 } }
    set { framePool.withLock { $0 = newValue } }
  }

  func later(_ body: @escaping @Sendable () -> Void) {
    errands.withLock { $0.append(body) }
    alarm.signal()
  }

  /// Has `body` called by the watchdog a few times a second until it returns false.
  func everyTick(_ body: @escaping @Sendable () -> Bool) { ticks.withLock { $0.append(body) } }

  func runTicks() {
    // They stay in the list meanwhile: one that ends the watchdog shall not take the others along.
    let list = ticks.withLock { $0 }
    let rest = list.filter { $0() }
    ticks.withLock { $0.replaceSubrange(0..<list.count, with: rest) }
  }

  func runErrands() {
    // One at a time: one that ends the watchdog shall not take the others along.
    for _ in 0..<errands.withLock({ $0.count }) {
      guard let errand = errands.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) else { return }
      errand()
    }
  }

  // MARK: Domains

  /// Makes a domain known to readers and watchdog; returns its slot.
  func connect(_ protection: RegionProtection) throws(PinError) -> Int {
    let slot = slotOwners.withLock { owners -> Int? in
      guard let free = (0..<Self.capacity).first(where: { owners[$0] == nil }) else { return nil }
      owners[free] = WeakProtection(protection: protection)
      return free
    }
    guard let slot else {
      throw PinError(
        .limitReached, operation: "protect a region", range: protection.addresses,
        advice: "An address space protects at most \(Self.capacity) regions at a time; use another one.")
    }
    unsafe slots[slot].open(protection.domain)
    return slot
  }

  func listen(_ descriptor: CInt, slot: Int, slice: Int) throws(PinError) {
    try events.add(descriptor, data: Self.data(slot: slot, slice: slice), once: true)
  }
  func rearm(_ descriptor: CInt, slot: Int, slice: Int) {
    events.rearm(descriptor, data: Self.data(slot: slot, slice: slice))
  }

  /// What the epoll set has of a slice's userfaultfd.
  private static func data(slot: Int, slice: Int) -> UInt64 { UInt64(slice) << 32 | UInt64(slot) }
  /// The slot and the slice; `nil` for ``stopData``, and for what a set of other code's says that has the number now.
  static func place(of data: UInt64) -> (slot: Int, slice: Int)? {
    let (slot, slice) = (data & 0xFFFF_FFFF, data >> 32)
    return slot < UInt64(capacity) && slice < 16 ? (Int(slot), Int(slice)) : nil
  }

  /// Has no reader at the slot any more, and none come by `descriptors`, for a region that is connected only now.
  func withdraw(_ descriptors: [CInt], slot: Int, _ protection: RegionProtection) {
    for descriptor in descriptors { events.remove(descriptor) }
    unsafe slots[slot].close()
    unsafe slots[slot].open(protection.domain)
  }

  /// Forgets a domain. When it returns, no reader is using it and none will.
  func disconnect(slot: Int, descriptors: [CInt] = []) {
    for descriptor in descriptors { events.remove(descriptor) }
    unsafe slots[slot].close()
    _ = slotOwners.withLock { $0.removeValue(forKey: slot) }
  }

  /// The regions that are protected now.
  var protections: [RegionProtection] { slotOwners.withLock { $0.values.compactMap(\.protection) } }

  @inline(__always) func slot(_ index: Int) -> UnsafeMutablePointer<DomainSlot> { unsafe slots + index }
}

/// Where readers find a domain; counts the readers that are using it. A reader counts itself and then looks for the domain, whoever closes the
/// slot takes the domain away and then looks at the count: one of the two sees the other.
@safe struct DomainSlot: ~Copyable {
  private let domain = Atomic<UInt>(0)
  private let users = Atomic<Int>(0)

  func open(_ pointer: UnsafeMutablePointer<FaultDomain>) {
    domain.store(UInt(bitPattern: pointer), ordering: .sequentiallyConsistent)
  }

  func close() {
    domain.store(0, ordering: .sequentiallyConsistent)
    while users.load(ordering: .sequentiallyConsistent) != 0 { Kernel.pause(nanoseconds: 20_000) }
  }

  /// The domain, held until ``leave()``; `nil` if the slot is free.
  @inline(__always) func enter() -> UnsafeMutablePointer<FaultDomain>? {
    users.add(1, ordering: .sequentiallyConsistent)
    if let pointer = unsafe UnsafeMutablePointer<FaultDomain>(bitPattern: domain.load(ordering: .sequentiallyConsistent)) {
      return unsafe pointer
    }
    leave()
    return nil
  }

  @inline(__always) func leave() { users.subtract(1, ordering: .sequentiallyConsistent) }
}

extension AddressSpace {
  /// The space's fault threads, started when they are first needed.
  func faultHandler() throws(PinError) -> FaultHandler {
    try services.findOrMake(FaultHandler.self) { () throws(PinError) in
      try FaultHandler(configuration: configuration, counters: counters)
    }
  }
}
