internal import Synchronization
internal import SystemPackage

/// Takes pages out of the mapping of a region whose userfaultfd hears of removals, so that whoever touches them traps.
///
/// The kernel announces `MADV_DONTNEED` like any other removal, and lets it go on when somebody has read that. Readers stand back while the
/// wrprotect lock is held exclusively, and one of them may wait for a page that whoever drops has claimed. So a thread of its own reads
/// meanwhile: what others removed at that moment is noted, whoever faulted tries again.
@safe final class MappingDrops: @unchecked Sendable {  // what is not atomic is the lock's, or the thread's
  /// Held by whoever drops.
  private let lock = FutexLock()
  private let bell = Bell()
  /// The domain whose userfaultfd is to be read; 0: none.
  private let domain = Atomic<UInt>(0)
  /// How many threads are at it, and will be until ``domain`` says otherwise.
  private let readers = Atomic<Int>(0)
  private let isStopping = Atomic<Bool>(false)
  /// The thread looks for the next range, and needs no bell.
  private let isLooking = Atomic<Bool>(false)
  /// Of the threads that were started the last one has not ended.
  private let isServed = Atomic<Bool>(false)
  private var threads: [KernelThread] = []
  /// The thread's: it counts among ``readers``.
  private var isAtIt = false

  deinit { lock.deallocate() }

  /// Nobody drops any more.
  func shutDown() {
    isStopping.store(true, ordering: .sequentiallyConsistent)
    bell.signal()
    for thread in threads { thread.join() }
    threads = []
  }

  /// Drops the mapping of `range`, which is registered with the domain's userfaultfd, or moves there next. The wrprotect lock is held, and
  /// the claims of the pages if it is held shared. 0 or a negative errno: ``PinError/noThread`` where the system has no thread for it.
  ///
  /// Waits until the thread reads: without it the call would not return.
  func drop(_ range: AddressRange, in domain: borrowing FaultDomain) -> CInt {
    if domain.descriptor.load(ordering: .acquiring) < 0 { return Memory.adviseResult(range, .dontNeed) }
    return Kernel.withSignalsBlocked {
      _ = lock.lockExclusive()
      defer { lock.unlockExclusive() }
      domain.beginOwnDrop(range)
      defer { domain.endOwnDrop() }
      self.domain.store(domain.address, ordering: .sequentiallyConsistent)
      defer { stopReading() }
      while readers.load(ordering: .sequentiallyConsistent) == 0 {
        let missing = serve()
        if missing != 0 { return missing }
        if !isLooking.load(ordering: .sequentiallyConsistent) { bell.signal() }
        for _ in 0..<1000 where readers.load(ordering: .sequentiallyConsistent) == 0 { Kernel.relax() }
      }
      return Memory.adviseResult(range, .dontNeed)
    }
  }

  private func stopReading() {
    domain.store(0, ordering: .sequentiallyConsistent)
    while readers.load(ordering: .sequentiallyConsistent) != 0 { Kernel.relax() }
  }

  /// Sees to it that there is a thread. 0 or a negative errno.
  private func serve() -> CInt {
    if isServed.load(ordering: .acquiring) { return 0 }
    let context = unsafe Unmanaged.passRetained(self).toOpaque()
    do throws(PinError) {
      isServed.store(true, ordering: .sequentiallyConsistent)
      let new = try unsafe KernelThread(
        name: "pinkit-drop", context: context,
        body: { unsafe Unmanaged<MappingDrops>.fromOpaque($0!).takeUnretainedValue().run() },
        onExit: { unsafe Unmanaged<MappingDrops>.fromOpaque($0!).takeRetainedValue().end() })
      threads.append(new)
      return 0
    } catch {
      isServed.store(false, ordering: .sequentiallyConsistent)
      unsafe Unmanaged<MappingDrops>.fromOpaque(context).release()
      let errno = error.errno ?? .resourceTemporarilyUnavailable
      return -(errno == .resourceTemporarilyUnavailable ? PinError.noThread : errno).rawValue
    }
  }

  /// Runs on the thread as it ends, however it does. Whoever drops at this moment waits in the kernel for who reads: for this thread, unless
  /// it found none at it, and starts another one.
  private func end() {
    let wasAtIt = isAtIt
    isAtIt = false
    isServed.store(false, ordering: .sequentiallyConsistent)
    var batch = FaultBatch()
    read(&batch)
    if wasAtIt { readers.subtract(1, ordering: .sequentiallyConsistent) }
  }

  /// In nanoseconds: about what it takes to wake a thread.
  private static let longestLook: UInt64 = 25_000

  private func run() {
    // Before anybody drops: the program's allocator may live in a region.
    var batch = FaultBatch()
    var ended: UInt64 = 0
    let mayLook = Kernel.processorCount > 2
    while !isStopping.load(ordering: .acquiring) {
      if domain.load(ordering: .sequentiallyConsistent) == 0 {
        _ = bell.wait(milliseconds: -1)
        bell.drain()
      }
      guard domain.load(ordering: .sequentiallyConsistent) != 0 else { continue }
      let begun = Kernel.now()
      isAtIt = true
      read(&batch)
      isAtIt = false
      let before = ended
      ended = Kernel.now()
      if mayLook, begun - before < 4 * Self.longestLook { look(until: ended + Self.longestLook) }
    }
  }

  /// Reads for whoever drops, until that is over.
  private func read(_ batch: inout FaultBatch) {
    readers.add(1, ordering: .sequentiallyConsistent)
    while let raw = unsafe UnsafePointer<FaultDomain>(bitPattern: domain.load(ordering: .sequentiallyConsistent)) {
      TestHooks.reach(.readingDrops)
      unsafe raw.pointee.readEvents(&batch)
      Kernel.relax()
    }
    readers.subtract(1, ordering: .sequentiallyConsistent)
  }

  /// Who drops one range after the other asks again at once: waking a thread costs more than the call.
  private func look(until end: UInt64) {
    isLooking.store(true, ordering: .sequentiallyConsistent)
    while domain.load(ordering: .sequentiallyConsistent) == 0, Kernel.now() < end { Kernel.relax() }
    isLooking.store(false, ordering: .sequentiallyConsistent)
  }
}

extension FaultDomain {
  /// What the kernel says of `range` until ``endOwnDrop()`` is PinKit's own doing, and no news.
  fileprivate func beginOwnDrop(_ range: AddressRange) {
    ownDropFrom.store(range.start, ordering: .sequentiallyConsistent)
    ownDropTo.store(range.end, ordering: .sequentiallyConsistent)
  }

  fileprivate func endOwnDrop() {
    // A reader may have read of it, and not yet looked whose it is.
    while unsettled.load(ordering: .sequentiallyConsistent) != 0 { Kernel.relax() }
    ownDropTo.store(0, ordering: .sequentiallyConsistent)
    ownDropFrom.store(0, ordering: .sequentiallyConsistent)
  }

  /// The kernel goes through the mappings in order, with a message for each. One of others that begins at the very same byte is taken for
  /// it, and then PinKit's own for one of theirs: too much is reported, and nothing lost.
  private func isOwnDrop(_ range: AddressRange) -> Bool {
    guard range.end <= ownDropTo.load(ordering: .sequentiallyConsistent) else { return false }
    return ownDropFrom.compareExchange(
      expected: range.start, desired: range.end, ordering: .sequentiallyConsistent
    ).exchanged
  }

  /// Reads what is queued, for a call of PinKit's own that the kernel keeps waiting until somebody has. Whoever faulted is woken, to fault
  /// again when this is over.
  ///
  /// - Parameter expectsMove: The call is mremap(2), and what the kernel says of one is no news.
  func readEvents(_ batch: inout FaultBatch, expectsMove: Bool = false) {
    let keepsBefore = keepsEnded.load(ordering: .acquiring)
    let descriptor = descriptor.load(ordering: .acquiring)
    guard isOwn(descriptor) else {
      _ = hasDescriptor()
      return
    }
    // Who reads a snapshot waits until what was read here is noted.
    unsettled.add(1, ordering: .sequentiallyConsistent)
    defer { unsettled.subtract(1, ordering: .sequentiallyConsistent) }
    _ = batch.read(from: descriptor)
    for index in 0..<batch.count {
      switch batch[index] {
      case .pageFault(let address, _, _):
        Uffd.wake(descriptor, AddressRange(start: address & ~UInt(Memory.pageSize - 1), count: Memory.pageSize))
      case .remap where expectsMove: break
      default: hear(batch[index], keepsBefore: keepsBefore)
      }
    }
  }

  /// Takes note of what happened to the memory.
  ///
  /// - Parameter keepsBefore: What ``keepsEnded`` said before the message was read.
  func hear(_ message: FaultMessage, keepsBefore: UInt64) {
    switch message {
    case .pageFault: return
    case .remove(let range):
      if isOwnDrop(range) { return }
      counters.add(.removeEvents)
      TestHooks.reach(.removing, page: page(at: max(range.start, addresses.start)))
      recordDiscard(range, keepsBefore: keepsBefore)
    case .unmap(let range):
      counters.add(.unmapEvents)
      if range.overlaps(addresses) { failMapping() }
    case .remap:
      counters.add(.remapEvents)
      TestHooks.reach(.remapping)
      failMapping()
    case .fork(let descriptor): Uffd.close(descriptor)
    case .unknown: counters.add(.unknownEvents)
    }
  }

  /// Other code has changed the mappings, and who was keeping a page at that moment may have found the bytes of another.
  private func failMapping() {
    fail(.mappingChanged, errno: 0)
    withOwedBytes { $0.lose(0..<table.pageCount, isQuiet: false) }
  }
}
