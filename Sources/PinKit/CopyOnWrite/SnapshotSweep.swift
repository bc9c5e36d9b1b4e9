internal import Synchronization

/// The thread that keeps pages ahead of their writers, for the snapshots of an address space that asked for it.
///
/// It takes the same locks and claims as a fault handler and keeps bytes with the same code, a slice of pages at a time; in between
/// everybody else has their turn. It never waits for a claim, and stops for a snapshot that reached its limit, was closed, given up,
/// or is not the newest of its region any more.
@safe final class SnapshotSweep: AddressSpaceService, @unchecked Sendable {  // `thread` is set once, at the start
  private struct Item {
    let store: CaptureStore
    let set: SnapshotSet
  }
  private let items = Mutex<[Item]>([])
  private let bell: Bell
  private let isStopping = Atomic<Bool>(false)
  private var thread: KernelThread?
  private let forkGeneration = Kernel.forkGeneration

  init() throws(PinError) {
    bell = Bell()
    thread = unsafe try start(Unmanaged.passRetained(self).toOpaque())
  }

  private func start(_ context: UnsafeMutableRawPointer) throws(PinError) -> KernelThread {
    do throws(PinError) {
      return try unsafe KernelThread(
        name: "pinkit-sweep", context: context,
        body: { unsafe Unmanaged<SnapshotSweep>.fromOpaque($0!).takeUnretainedValue().run() },
        onExit: { unsafe Unmanaged<SnapshotSweep>.fromOpaque($0!).release() })
    } catch {
      unsafe Unmanaged<SnapshotSweep>.fromOpaque(context).release()
      throw error
    }
  }

  func add(_ store: CaptureStore, of set: SnapshotSet) {
    items.withLock { $0.append(Item(store: store, set: set)) }
    bell.signal()
  }

  private func run() {
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
    thread?.join()
  }
}

extension AddressSpace {
  /// The space's sweep, started when it is first needed.
  func snapshotSweep() throws(PinError) -> SnapshotSweep {
    try services.findOrMake(SnapshotSweep.self) { () throws(PinError) in try SnapshotSweep() }
  }
}
