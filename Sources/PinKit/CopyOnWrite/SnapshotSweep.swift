internal import Logging
internal import Synchronization

/// The thread that keeps pages ahead of their writers, for the snapshots of an address space that asked for it.
///
/// It takes the same locks and claims as a fault handler and keeps bytes with the same code, a slice of pages at a time; in between
/// everybody else has their turn. It never waits for a claim, and stops for a snapshot that reached its limit, was closed, given up,
/// or is not the newest of its region any more. The watchdog says when it is stuck, and if it ends there is another one (K3): nobody waits
/// for a sweep, but for what it holds.
@safe final class SnapshotSweep: AddressSpaceService, @unchecked Sendable {  // `watch` is the watchdog's
  private struct Item {
    let store: CaptureStore
    let set: SnapshotSet
  }
  private let items = Mutex<[Item]>([])
  private let bell: Bell
  private let isStopping = Atomic<Bool>(false)
  private let threads = Mutex<[KernelThread]>([])
  private let forkGeneration = Kernel.forkGeneration
  /// Goes up with each slice; 0 between them.
  private let slice = Atomic<UInt64>(0)
  private var slices: UInt64 = 0
  private var watch = WorkWatch()
  private let logger: Logger

  init(watchedBy handler: FaultHandler) throws(PinError) {
    logger = handler.logger
    bell = Bell()
    let first = try start()
    threads.withLock { $0.append(first) }
    let patience = handler.patience
    handler.everyTick { [weak self] in
      guard let self, !isStopping.load(ordering: .acquiring) else { return false }
      look(patience)
      return true
    }
  }

  private func start() throws(PinError) -> KernelThread {
    let context = unsafe Unmanaged.passRetained(self).toOpaque()
    do throws(PinError) {
      return try unsafe KernelThread(
        name: "pinkit-sweep", context: context,
        body: { unsafe Unmanaged<SnapshotSweep>.fromOpaque($0!).takeUnretainedValue().run() },
        onExit: { unsafe Unmanaged<SnapshotSweep>.fromOpaque($0!).takeRetainedValue().end() })
    } catch {
      unsafe Unmanaged<SnapshotSweep>.fromOpaque(context).release()
      throw error
    }
  }

  /// Runs on the thread as it ends, however it does. Whoever shuts down joins the threads that are there by then.
  private func end() {
    slice.store(0, ordering: .releasing)
    let isReplaced = threads.withLock { threads -> Bool? in
      if isStopping.load(ordering: .sequentiallyConsistent) { return nil }
      guard let new = try? start() else { return false }
      threads.append(new)
      return true
    }
    guard let isReplaced else { return }
    logger.critical(
      "the thread that keeps pages ahead of writers ended unexpectedly; \(isReplaced ? "there is a new one" : "writers keep them, one by one")"
    )
    bell.signal()
  }

  /// On the watchdog's thread.
  private func look(_ patience: Double) {
    guard watch.isOverdue(slice.load(ordering: .acquiring), patience: Kernel.nanoseconds(patience)) else { return }
    logger.critical(
      "keeping pages ahead of writers has been stuck for \(patience) s; threads that write to these pages wait for it")
  }

  func add(_ store: CaptureStore, of set: SnapshotSet) {
    items.withLock { $0.append(Item(store: store, set: set)) }
    bell.signal()
  }

  private func run() {
    let ended = threads.withLock { threads in
      let ended = threads.dropLast()
      threads = threads.suffix(1)
      return Array(ended)
    }
    for thread in ended { thread.join() }
    while !isStopping.load(ordering: .acquiring) {
      if bell.wait(milliseconds: -1) { bell.drain() }
      while let item = items.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) { sweep(item) }
    }
  }

  private func sweep(_ item: Item) {
    // Absent pages first: they cost nothing, and shall not be read.
    for run in item.set.populated(for: item.store) {
      var next = run.lowerBound
      while next < run.upperBound, !isStopping.load(ordering: .acquiring) {
        slices += 1
        slice.store(slices, ordering: .releasing)
        defer { slice.store(0, ordering: .releasing) }
        TestHooks.reach(.sweeping, page: next)
        guard let end = item.set.sweep(item.store, next..<run.upperBound) else { return }
        next = end
      }
    }
  }

  func shutDown() {
    // In a child of fork() the thread does not exist.
    guard forkGeneration == Kernel.forkGeneration, !isStopping.exchange(true, ordering: .sequentiallyConsistent) else {
      return
    }
    bell.signal()
    // One that was started last may join those before it: each is joined by who takes it out.
    let rest = threads.withLock { threads in
      defer { threads = [] }
      return threads
    }
    for thread in rest { thread.join() }
  }
}

extension AddressSpace {
  /// The space's sweep, started when it is first needed.
  func snapshotSweep() throws(PinError) -> SnapshotSweep {
    let handler = try faultHandler()
    return try services.findOrMake(SnapshotSweep.self) { () throws(PinError) in try SnapshotSweep(watchedBy: handler) }
  }
}
