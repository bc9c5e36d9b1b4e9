internal import Logging
internal import Synchronization

/// One of the ``StoreThreads``: what it is at, for the watchdog, and what it holds, for when it ends in the middle.
@safe final class StoreWorker: @unchecked Sendable {  // what is not atomic or locked belongs to its own thread
  let threads: StoreThreads
  /// Made before there is a thread: one that waits for memory serves nobody.
  let buffer: Mapping
  let isDead = Atomic<Bool>(false)
  private var isDone = false
  /// Whether it has locked the frame of the page at hand, or holds the wrprotect lock of its region, and the pages it may have claimed.
  var hasLocked = false
  var isHolding = false
  var claims = 0..<0
  /// The request at hand, and when it was begun: whoever has this locked may use its region.
  private let request = Mutex<(request: StoreThreads.Request, begun: UInt64)?>(nil)
  /// Goes up with each request; 0 between them.
  private let begun = Atomic<UInt64>(0)
  private var turns: UInt64 = 0
  /// For the watchdog's thread: since when it is slow, and since when it is past hope.
  private let watches = Mutex((slow: WorkWatch(), silent: WorkWatch()))

  /// How many times its patience a store may take before its region is failed.
  static let givingUp: UInt64 = 6

  init(_ threads: StoreThreads) throws(PinError) {
    self.threads = threads
    buffer = try Mapping(count: FaultReader.supplySize)
    for advice in [Memory.Advice.dontFork, .dontDump] { try? Memory.advise(buffer.range, advice) }
  }

  func start() throws(PinError) -> KernelThread {
    let context = unsafe Unmanaged.passRetained(self).toOpaque()
    do throws(PinError) {
      return try unsafe KernelThread(
        name: "pinkit-store", context: context,
        body: { unsafe Unmanaged<StoreWorker>.fromOpaque($0!).takeUnretainedValue().run() },
        onExit: { unsafe Unmanaged<StoreWorker>.fromOpaque($0!).takeRetainedValue().end() })
    } catch {
      unsafe Unmanaged<StoreWorker>.fromOpaque(context).release()
      throw error
    }
  }

  private func run() {
    while true {
      let goesOn = threads.waitForWork()
      if !goesOn { break }
      while let next = threads.take() { carryOut(next) }
    }
    isDone = true
  }

  private func carryOut(_ next: StoreThreads.Request) {
    let now = Kernel.now()
    request.withLock { $0 = (next, now) }
    turns += 1
    begun.store(turns, ordering: .releasing)
    next.withTarget { $0.perform(next, by: self) }
    settle(next)
  }

  private func settle(_ done: StoreThreads.Request) {
    begun.store(0, ordering: .releasing)
    request.withLock { $0 = nil }
    done.withTarget { target in
      threads.giveBack(target.queue)
      target.noteDone()
    }
  }

  /// Runs on the thread as it ends, however it does.
  private func end() {
    if isDone { return }
    if let left = request.withLock({ $0?.request }) {
      left.withTarget { $0.abandon(left, by: self) }
      settle(left)
    }
    threads.noteEnd()
    isDead.store(true, ordering: .releasing)
    threads.handler.alarm.signal()
  }

  /// Looks whether the store answers; on the watchdog's thread.
  func look(patience: UInt64, _ logger: Logger) {
    let now = begun.load(ordering: .acquiring)
    let (isSlow, isSilent) = watches.withLock {
      ($0.slow.isOverdue(now, patience: patience), $0.silent.isOverdue(now, patience: Self.givingUp * patience))
    }
    guard isSlow || isSilent else { return }
    request.withLock { request in
      guard let request = request?.request, begun.load(ordering: .acquiring) == now else { return }
      request.withTarget { target in
        if isSlow {
          logger.critical(
            "a store has not answered for \(threads.handler.patience) s when asked \(request.kind == .fill ? "for" : "to let be written") pages \(request.pages) of \(target.addresses); threads that touch them wait for it"
          )
        }
        if isSilent { target.protection.fail(.storeSilent) }
      }
    }
  }

  /// For how many nanoseconds it has been at the store of `queue`; `nil` if it is not.
  func timeAtStore(of queue: StoreQueue) -> UInt64? {
    request.withLock { current in
      guard let current, current.request.withTarget({ $0.queue === queue }) else { return nil }
      return Kernel.now() - current.begun
    }
  }
}
