internal import Synchronization
internal import SystemPackage

/// Takes pages out of the mapping of a region whose userfaultfd hears of removals, so that whoever touches them traps.
///
/// The kernel announces `MADV_DONTNEED` like any other removal, and lets it go on when somebody has read that. Readers stand back while the
/// wrprotect lock is held exclusively, and one of them may wait for a page that whoever drops has claimed. So a thread of its own makes the
/// call, and this one reads until it is done: what others removed at that moment is noted, whoever faulted tries again.
@safe final class MappingDrops: @unchecked Sendable {  // what is not atomic is the lock's
  /// Held by whoever drops.
  private let lock = FutexLock()
  private let bell = Bell()
  private let start = Atomic<UInt>(0)
  private let end = Atomic<UInt>(0)
  private let result = Atomic<CInt>(0)
  private let isAsked = Atomic<Bool>(false)
  private let isStopping = Atomic<Bool>(false)
  /// The thread looks for the next range, and needs no bell.
  private let isLooking = Atomic<Bool>(false)
  /// A thread ended that nobody had asked to: for the watchdog.
  let hasEnded = Atomic<Bool>(false)
  /// Of the threads that were started the last one has not ended.
  private let isServed = Atomic<Bool>(false)
  private var thread: KernelThread?
  private var batch = FaultBatch()

  deinit { lock.deallocate() }

  /// Nobody drops any more.
  func shutDown() {
    isStopping.store(true, ordering: .sequentiallyConsistent)
    bell.signal()
    thread?.join()
    thread = nil
  }

  /// Drops the mapping of `range`, which is registered with the domain's userfaultfd, or moves there next. The wrprotect lock is held, and
  /// the claims of the pages if it is held shared. 0 or a negative errno: ``PinError/noThread`` where the system has no thread for it.
  func drop(_ range: AddressRange, in domain: borrowing FaultDomain) -> CInt {
    if !domain.isConnected { return Memory.adviseResult(range, .dontNeed) }
    return Kernel.withSignalsBlocked {
      _ = lock.lockExclusive()
      defer { lock.unlockExclusive() }
      domain.beginOwnDrop(range)
      defer { domain.endOwnDrop() }
      start.store(range.start, ordering: .relaxed)
      end.store(range.end, ordering: .relaxed)
      isAsked.store(true, ordering: .sequentiallyConsistent)
      while isAsked.load(ordering: .sequentiallyConsistent) {
        let missing = serve()
        guard missing == 0 else {
          isAsked.store(false, ordering: .sequentiallyConsistent)
          return missing
        }
        if !isLooking.load(ordering: .sequentiallyConsistent) { bell.signal() }
        for _ in 0..<200 where isAsked.load(ordering: .sequentiallyConsistent) {
          domain.readEvents(&batch)
          Kernel.relax()
        }
        // The thread may need this processor.
        if isAsked.load(ordering: .sequentiallyConsistent) { Kernel.pause(nanoseconds: 20_000) }
      }
      return result.load(ordering: .acquiring)
    }
  }

  /// Sees to it that there is a thread; one that ends right after is replaced when this is called again. 0 or a negative errno.
  private func serve() -> CInt {
    if isServed.load(ordering: .acquiring) { return 0 }
    thread?.join()
    thread = nil
    let context = unsafe Unmanaged.passRetained(self).toOpaque()
    do throws(PinError) {
      isServed.store(true, ordering: .sequentiallyConsistent)
      thread = try unsafe KernelThread(
        name: "pinkit-drop", context: context,
        body: { unsafe Unmanaged<MappingDrops>.fromOpaque($0!).takeUnretainedValue().run() },
        onExit: { context in
          let drops = unsafe Unmanaged<MappingDrops>.fromOpaque(context!).takeRetainedValue()
          drops.isLooking.store(false, ordering: .sequentiallyConsistent)
          if !drops.isStopping.load(ordering: .acquiring) { drops.hasEnded.store(true, ordering: .sequentiallyConsistent) }
          drops.isServed.store(false, ordering: .sequentiallyConsistent)
        })
      return 0
    } catch {
      isServed.store(false, ordering: .sequentiallyConsistent)
      unsafe Unmanaged<MappingDrops>.fromOpaque(context).release()
      let errno = error.errno ?? .resourceTemporarilyUnavailable
      return -(errno == .resourceTemporarilyUnavailable ? PinError.noThread : errno).rawValue
    }
  }

  /// In nanoseconds: about what it takes to wake a thread.
  private static let longestLook: UInt64 = 25_000

  private func run() {
    var ended: UInt64 = 0
    let mayLook = Kernel.processorCount > 2
    while !isStopping.load(ordering: .acquiring) {
      if !isAsked.load(ordering: .sequentiallyConsistent) {
        _ = bell.wait(milliseconds: -1)
        bell.drain()
      }
      guard isAsked.load(ordering: .sequentiallyConsistent) else { continue }
      TestHooks.reach(.unmapping)
      let begun = Kernel.now()
      let range = AddressRange(start: start.load(ordering: .relaxed), end: end.load(ordering: .relaxed))
      result.store(Memory.adviseResult(range, .dontNeed), ordering: .relaxed)
      isAsked.store(false, ordering: .sequentiallyConsistent)
      let before = ended
      ended = Kernel.now()
      if mayLook, begun - before < 4 * Self.longestLook { look(until: ended + Self.longestLook) }
    }
  }

  /// Who drops one range after the other asks again at once: waking a thread costs more than the call.
  private func look(until end: UInt64) {
    isLooking.store(true, ordering: .sequentiallyConsistent)
    while !isAsked.load(ordering: .sequentiallyConsistent), Kernel.now() < end { Kernel.relax() }
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
    // A reader may have read of it, and not yet looked whose it is. One that ends there fails the region.
    var turns = 0
    while unsettled.load(ordering: .sequentiallyConsistent) != 0, failure.load(ordering: .acquiring) == 0 {
      turns += 1
      if turns.isMultiple(of: 200) { Kernel.pause(nanoseconds: 20_000) } else { Kernel.relax() }
    }
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
    for slice in 0..<sliceCount { readEvents(&batch, slice: slice, expectsMove: expectsMove) }
  }

  private func readEvents(_ batch: inout FaultBatch, slice: Int, expectsMove: Bool) {
    let keepsBefore = keepsEnded.load(ordering: .acquiring)
    guard hasDescriptor(slice: slice) else { return }
    let descriptor = channels[slice].listening
    if descriptor < 0 { return }
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
    withOwedBytes { $0.lose(0..<table.pageCount) { false } }
  }
}
