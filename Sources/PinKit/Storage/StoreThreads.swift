internal import Synchronization

/// The threads that wait for stores, so that fault readers need not: shared by all regions of an address space over a store.
///
/// There are as many as there are stores at work, up to a limit: one that is slow keeps its own thread, and others are started for the faults
/// that come meanwhile. Asking for work allocates nothing and may be done in the fault path.
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
  private let bell: EventDescriptor
  private let threads = Mutex<[KernelThread]>([])
  private let forkGeneration = Kernel.forkGeneration

  init() throws(PinError) {
    unsafe ring = .allocate(capacity: Self.capacity)
    bell = try EventDescriptor()
    try startThread()
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
    for thread in all { thread.join() }
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

  private func take() -> Request? {
    _ = lock.lockExclusive()
    defer { lock.unlockExclusive() }
    guard count > 0 else { return nil }
    let request = unsafe ring[first]
    first = (first + 1) % Self.capacity
    count -= 1
    return request
  }

  private func startThread() throws(PinError) {
    let context = unsafe Unmanaged.passRetained(self).toOpaque()
    do throws(PinError) {
      let thread = try unsafe KernelThread(
        name: "pinkit-store", context: context,
        body: { unsafe Unmanaged<StoreThreads>.fromOpaque($0!).takeUnretainedValue().run() },
        onExit: { unsafe Unmanaged<StoreThreads>.fromOpaque($0!).release() })
      started.add(1, ordering: .relaxed)
      threads.withLock { $0.append(thread) }
    } catch {
      unsafe Unmanaged<StoreThreads>.fromOpaque(context).release()
      throw error
    }
  }

  private func run() {
    let buffer = makeBuffer()
    for advice in [Memory.Advice.dontFork, .dontDump] { try? Memory.advise(buffer.range, advice) }
    while true {
      idle.add(1, ordering: .sequentiallyConsistent)
      _ = bell.wait(milliseconds: -1)
      if isStopping.load(ordering: .sequentiallyConsistent) { return }
      idle.subtract(1, ordering: .sequentiallyConsistent)
      bell.drain()
      while let request = take() {
        leaveAnother()
        unsafe Unmanaged<FilePages>.fromOpaque(UnsafeRawPointer(bitPattern: request.target)!)
          ._withUnsafeGuaranteedRef { $0.perform(request, through: buffer.range) }
      }
    }
  }

  private func makeBuffer() -> Mapping {
    while true {
      if let buffer = try? Mapping(count: FaultReader.supplySize) { return buffer }
      // Others may give memory back.
      Kernel.pause(nanoseconds: 10_000_000)
    }
  }

  /// Whatever comes while this thread waits for a store must not wait for it, too.
  private func leaveAnother() {
    if idle.load(ordering: .sequentiallyConsistent) == 0, started.load(ordering: .relaxed) < Self.maximumThreads {
      // Where the system has no thread left, these go on.
      try? startThread()
    }
    if !isEmpty { bell.signal() }
  }

  private var isEmpty: Bool {
    _ = lock.lockExclusive()
    defer { lock.unlockExclusive() }
    return count == 0
  }
}

extension AddressSpace {
  func storeThreads() throws(PinError) -> StoreThreads {
    try services.findOrMake(StoreThreads.self) { () throws(PinError) in try StoreThreads() }
  }
}
