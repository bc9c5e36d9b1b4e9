internal import Logging
internal import Synchronization

/// The threads that wait for stores, so that fault readers need not: shared by all regions of an address space over a store.
///
/// There are as many as there are stores at work, up to a limit: one that is slow keeps its own thread, and others are started for the faults
/// that come meanwhile. Asking for work allocates nothing and may be done in the fault path. The watchdog looks after them (K3): one that ends
/// fails the region it was at and is replaced, and one that its store keeps for too long is reported.
@safe final class StoreThreads: AddressSpaceService, @unchecked Sendable {  // the ring is the lock's
  struct Request {
    enum Kind: UInt8 {
      /// Bring `pages` in, for a fault on `page`.
      case fill
      /// Ask the store whether `page` may be written.
      case makeWritable
    }
    var kind: Kind
    var page: Int
    var pages: Range<Int>
    /// Unretained: it waits for its requests before it goes.
    var target: UInt

    func withTarget(_ body: (FilePages) -> Void) {
      unsafe Unmanaged<FilePages>.fromOpaque(UnsafeRawPointer(bitPattern: target)!)._withUnsafeGuaranteedRef { body($0) }
    }
  }

  private static let capacity = 4096
  static let maximumThreads = 64
  private let lock = FutexLock()
  private let ring: UnsafeMutablePointer<Request>
  private var first = 0
  private var count = 0
  private let idle = Atomic<Int>(0)
  private let started = Atomic<Int>(0)
  private let isStopping = Atomic<Bool>(false)
  private let bell: Bell
  private let threads = Mutex<[(thread: KernelThread, worker: StoreWorker)]>([])
  private let forkGeneration = Kernel.forkGeneration
  let handler: FaultHandler

  init(_ handler: FaultHandler) throws(PinError) {
    self.handler = handler
    unsafe ring = .allocate(capacity: Self.capacity)
    bell = Bell()
    try startThread()
    handler.everyTick { [weak self] in self?.look() ?? false }
  }

  deinit {
    lock.deallocate()
    unsafe ring.deallocate()
  }

  func shutDown() {
    guard forkGeneration == Kernel.forkGeneration else { return }
    guard !isStopping.exchange(true, ordering: .sequentiallyConsistent) else { return }
    bell.signal()
    let all = threads.withLock { list in
      defer { list = [] }
      return list
    }
    for (thread, _) in all { thread.join() }
  }

  /// False if there is no room; nothing will happen then.
  func add(_ request: Request) -> Bool {
    _ = lock.lockExclusive()
    let hasRoom = count < Self.capacity
    if hasRoom {
      unsafe (ring + (first + count) % Self.capacity).initialize(to: request)
      count += 1
    }
    lock.unlockExclusive()
    if hasRoom { bell.signal() }
    return hasRoom
  }

  /// A request, if there is one; whatever else there is goes to another thread.
  func take() -> Request? {
    guard let request = pop() else { return nil }
    leaveAnother()
    return request
  }

  private func pop() -> Request? {
    _ = lock.lockExclusive()
    defer { lock.unlockExclusive() }
    guard count > 0 else { return nil }
    let request = unsafe ring[first]
    first = (first + 1) % Self.capacity
    count -= 1
    return request
  }

  /// False if there will be none.
  func waitForWork() -> Bool {
    idle.add(1, ordering: .sequentiallyConsistent)
    TestHooks.reach(.storeIdle)
    _ = bell.wait(milliseconds: -1)
    if isStopping.load(ordering: .sequentiallyConsistent) { return false }
    idle.subtract(1, ordering: .sequentiallyConsistent)
    bell.drain()
    if isStopping.load(ordering: .sequentiallyConsistent) {
      // It may have rung for that meanwhile, and the others must hear it too.
      bell.signal()
      return false
    }
    return true
  }

  private func startThread() throws(PinError) {
    let worker = try StoreWorker(self)
    let thread = try worker.start()
    started.add(1, ordering: .relaxed)
    threads.withLock { $0.append((thread, worker)) }
  }

  /// Whatever comes while this thread waits for a store must not wait for it, too.
  private func leaveAnother() {
    if idle.load(ordering: .sequentiallyConsistent) == 0, started.load(ordering: .relaxed) < Self.maximumThreads {
      // Where the system has no thread left, these go on.
      try? startThread()
    }
    if !isEmpty { bell.signal() }
  }

  // MARK: The watchdog

  /// A thread has ended that nobody had asked to.
  func noteEnd(wasIdle: Bool) {
    started.subtract(1, ordering: .relaxed)
    if wasIdle { idle.subtract(1, ordering: .sequentiallyConsistent) }
  }

  /// Looks after the threads; true if it is to be called again.
  private func look() -> Bool {
    if isStopping.load(ordering: .sequentiallyConsistent) { return false }
    let (dead, alive) = threads.withLock { list in
      let dead = list.filter { $0.worker.isDead.load(ordering: .acquiring) }
      if !dead.isEmpty { list.removeAll { $0.worker.isDead.load(ordering: .acquiring) } }
      return (dead, list)
    }
    for (thread, _) in dead {
      thread.join()
      handler.logger.critical("a thread that waits for stores ended unexpectedly; its region has failed if it was at one")
    }
    let patience = Kernel.nanoseconds(handler.patience)
    for (_, worker) in alive { worker.look(patience: patience, handler.logger) }
    // What waits for the threads that ended must not wait for ever.
    if started.load(ordering: .relaxed) == 0 || (idle.load(ordering: .sequentiallyConsistent) == 0 && !isEmpty) {
      leaveAnother()
    }
    return true
  }

  private var isEmpty: Bool {
    _ = lock.lockExclusive()
    defer { lock.unlockExclusive() }
    return count == 0
  }
}

extension AddressSpace {
  func storeThreads() throws(PinError) -> StoreThreads {
    let handler = try faultHandler()
    return try services.findOrMake(StoreThreads.self) { () throws(PinError) in try StoreThreads(handler) }
  }
}
