internal import Logging
internal import Synchronization

/// The threads that wait for stores, so that fault readers need not: shared by all regions of an address space over a store.
///
/// There are as many as there have ever been calls of stores under way at once, and one more: one that is slow keeps its own thread,
/// and others are started for the faults that come meanwhile. **A store may have three quarters of the threads that other stores leave out of 64, and one in any
/// case**: alone it has up to 48, and however many calls of other stores do not return, each store has a thread that they cannot take.
/// So there are 64 at most, one more for each store for which none of these is left, and the one that waits. Stores that wait have their
/// turns one after the other.
///
/// Asking for work allocates nothing and may be done in the fault path. The watchdog looks after them (K3): one that ends
/// fails the region it was at and is replaced, and one that its store keeps for too long is reported, as is what waits for a thread for
/// too long.
@safe final class StoreThreads: AddressSpaceService, @unchecked Sendable {  // what is not atomic or in a mutex is the lock's
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

    func withTarget<Result>(_ body: (FilePages) -> Result) -> Result {
      unsafe Unmanaged<FilePages>.fromOpaque(UnsafeRawPointer(bitPattern: target)!)._withUnsafeGuaranteedRef { body($0) }
    }
  }

  static let maximumThreads = 64
  private let lock = FutexLock()
  /// The queues in which requests wait, in the order of their turns.
  private var firstWaiting: StoreQueue?
  private var lastWaiting: StoreQueue?
  private var started = 0
  /// How many of them are at a store.
  private var atWork = 0
  private let isStopping = Atomic<Bool>(false)
  private let bell: Bell
  private let threads = Mutex<[(thread: KernelThread, worker: StoreWorker)]>([])
  private let queues = Mutex<[WeakQueue]>([])
  private let forkGeneration = Kernel.forkGeneration
  let handler: FaultHandler

  private struct WeakQueue: Sendable { weak var queue: StoreQueue? }

  init(_ handler: FaultHandler) throws(PinError) {
    self.handler = handler
    bell = Bell()
    started = 1
    try startThread()
    handler.everyTick { [weak self] in self?.look() ?? false }
  }

  deinit { lock.deallocate() }

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

  /// The one queue of a store, for as long as whoever has it has the store.
  func queue(of store: any PageStore) -> StoreQueue {
    if let known = known(store) { return known }
    // Asks the store for its name, which is the program's code: with no lock held that the watchdog needs.
    let made = StoreQueue(store)
    return known(store, orAdding: made) ?? made
  }

  private func known(_ store: any PageStore, orAdding made: StoreQueue? = nil) -> StoreQueue? {
    queues.withLock { list in
      list.removeAll { $0.queue == nil }
      for known in list { if let queue = known.queue, queue.store == ObjectIdentifier(store) { return queue } }
      if let made { list.append(WeakQueue(queue: made)) }
      return nil
    }
  }

  // MARK: Requests

  /// False if there is no room; nothing will happen then.
  func add(_ request: Request, to queue: StoreQueue) -> Bool {
    let (hasRoom, mayBegin) = locked {
      guard queue.append(request) else { return (false, false) }
      if queue.count == 1 { link(queue) }
      return (true, mayHaveThread(queue))
    }
    if mayBegin { bell.signal() }
    return hasRoom
  }

  /// A request, if there is one that may have this thread; whatever else there is goes to another one.
  func take() -> Request? {
    let request = locked { () -> Request? in
      guard let queue = unlinkNext() else { return nil }
      let request = queue.removeFirst()
      if queue.count > 0 { link(queue) }
      queue.held += 1
      atWork += 1
      return request
    }
    guard let request else { return nil }
    leaveAnother()
    return request
  }

  /// A thread is not at a store any more for a request that it took. Its queue may go after this.
  func giveBack(_ queue: StoreQueue) {
    locked {
      queue.held -= 1
      atWork -= 1
    }
  }

  /// The share of a store; it is what other stores can count on.
  private func mayHaveThread(_ queue: StoreQueue) -> Bool {
    let others = atWork - queue.held
    return queue.held == 0 || queue.held < (Self.maximumThreads - others) * 3 / 4
  }

  private func link(_ queue: StoreQueue) {
    if let last = lastWaiting { last.next = queue } else { firstWaiting = queue }
    lastWaiting = queue
  }

  /// Takes the first queue out whose store may have a thread.
  private func unlinkNext() -> StoreQueue? {
    var before: StoreQueue?
    var at = firstWaiting
    while let queue = at {
      if mayHaveThread(queue) {
        if let before { before.next = queue.next } else { firstWaiting = queue.next }
        if queue.next == nil { lastWaiting = before }
        queue.next = nil
        return queue
      }
      before = queue
      at = queue.next
    }
    return nil
  }

  /// Whether a request waits whose store may have a thread.
  private var hasWork: Bool {
    var at = firstWaiting
    while let queue = at {
      if mayHaveThread(queue) { return true }
      at = queue.next
    }
    return false
  }

  private func locked<Result>(_ body: () -> Result) -> Result {
    _ = lock.lockExclusive()
    defer { lock.unlockExclusive() }
    return body()
  }

  // MARK: Threads

  /// False if there will be none.
  func waitForWork() -> Bool {
    TestHooks.reach(.storeIdle)
    _ = bell.wait(milliseconds: -1)
    if isStopping.load(ordering: .sequentiallyConsistent) { return false }
    bell.drain()
    if isStopping.load(ordering: .sequentiallyConsistent) {
      // It may have rung for that meanwhile, and the others must hear it too.
      bell.signal()
      return false
    }
    return true
  }

  /// Whoever calls this has counted it as started.
  private func startThread() throws(PinError) {
    do throws(PinError) {
      let worker = try StoreWorker(self)
      let thread = try worker.start()
      threads.withLock { $0.append((thread, worker)) }
    } catch {
      locked { started -= 1 }
      throw error
    }
  }

  /// Whatever comes while this thread waits for a store must not wait for it, too.
  private func leaveAnother() {
    let isNeeded = locked {
      guard started <= atWork else { return false }
      started += 1
      return true
    }
    // Where the system has no thread left, those that there are go on, and the watchdog tries again.
    if isNeeded { try? startThread() }
    if locked({ hasWork }) { bell.signal() }
  }

  /// A thread has ended that nobody had asked to.
  func noteEnd() { locked { started -= 1 } }

  // MARK: The watchdog

  /// Looks after the threads; true if it is to be called again.
  private func look() -> Bool {
    if isStopping.load(ordering: .sequentiallyConsistent) { return false }
    let (dead, alive) = threads.withLock { list in
      // Each is asked once: one that ends meanwhile is found the next time.
      let isDead = list.map { $0.worker.isDead.load(ordering: .acquiring) }
      let dead = list.indices.filter { isDead[$0] }.map { list[$0] }
      list = list.indices.filter { !isDead[$0] }.map { list[$0] }
      return (dead, list)
    }
    for (thread, _) in dead {
      thread.join()
      handler.logger.critical("a thread that waits for stores ended unexpectedly; its region has failed if it was at one")
    }
    let patience = Kernel.nanoseconds(handler.patience)
    for (_, worker) in alive { worker.look(patience: patience, handler.logger) }
    for delay in delays(patience, alive.map(\.worker)) { handler.logger.critical("\(delay)") }
    // What waits for the threads that ended must not wait for ever.
    leaveAnother()
    return true
  }

  /// What is to be said of requests that wait for a thread.
  private func delays(_ patience: UInt64, _ workers: [StoreWorker]) -> [StoreDelay] {
    // With the list locked, so that nobody finds a queue that only this still has.
    queues.withLock { list in
      list.compactMap { known in
        guard let queue = known.queue else { return nil }
        var delay = locked { () -> StoreDelay? in
          // What waits has not gone. It fares like what a store keeps for as long.
          if queue.isStuck(patience: StoreWorker.givingUp * patience) {
            queue.forEachWaiting { $0.withTarget { $0.protection.fail(.storeSilent) } }
          }
          guard queue.isOverdue(patience: patience) else { return nil }
          let (pages, addresses) = (queue.head.pages, queue.head.withTarget { $0.addresses })
          return StoreDelay(
            store: queue.name, patience: handler.patience, waiting: queue.count, pages: pages, addresses: addresses,
            calls: queue.held, otherCalls: atWork - queue.held, isDue: mayHaveThread(queue))
        }
        delay?.longest = workers.compactMap { $0.timeAtStore(of: queue) }.max()
        return delay
      }
    }
  }
}

/// Requests have waited for a thread for longer than the patience.
private struct StoreDelay: CustomStringConvertible {
  let store: String
  /// In seconds.
  let patience: Double
  let waiting: Int
  let pages: Range<Int>
  let addresses: AddressRange
  /// Calls under way, of the store and of others; and for how many nanoseconds the first of the store's has been.
  let calls: Int
  let otherCalls: Int
  /// Whether it has a right to a thread, and there is none.
  let isDue: Bool
  var longest: UInt64?

  var description: String {
    let what =
      "what is asked of the store \(store) has waited for \(patience) s for a thread, \(waiting) requests by now, the first for pages \(pages) of \(addresses); threads that touch them wait for it"
    if isDue {
      return "\(what): the system has no thread for it (ulimit -u, pids.max); calls of other stores: \(otherCalls)"
    }
    let time = longest.map { ", the first for \(Double($0 / 1_000_000) / 1000) s" } ?? ""
    return
      "\(what): \(calls) of its calls have not returned\(time); calls of other stores: \(otherCalls). See to what the store waits for, a device or a server; one that may be away for long should give its calls up after a time, and throw"
  }
}

extension AddressSpace {
  func storeThreads() throws(PinError) -> StoreThreads {
    let handler = try faultHandler()
    return try services.findOrMake(StoreThreads.self) { () throws(PinError) in try StoreThreads(handler) }
  }
}
