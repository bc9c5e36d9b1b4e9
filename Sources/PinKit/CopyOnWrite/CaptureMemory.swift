internal import Synchronization

/// The memory of a capture store: two mappings as long as the region, one on small pages for copies far apart and one on huge pages for
/// dense ones, and between them four bitmaps.
final class CaptureMemory: Sendable {
  private let mapping: Mapping
  /// From the first mapping to the second, in bytes.
  let denseOffset: Int
  private let marksStart: Int
  private static let marksCount = 4
  let marksSize: Int

  var start: UInt { mapping.range.start }

  /// Maps the memory and touches none of it.
  init(region: Region) throws(PinError) {
    let copies = region.addresses.count
    marksStart = copies
    marksSize = (PageMarks.size(pageCount: region.pageCount) + 4095) & ~4095
    let isHuge = region.pageSize > Memory.pageSize
    let alignment = max(region.pageSize, HugeFrames.size)
    denseOffset = (copies + Self.marksCount * marksSize + alignment - 1) / alignment * alignment
    mapping = try Mapping(count: denseOffset + (isHuge ? 0 : copies), alignment: alignment)
    // Sparse copies on huge pages would take 512 times the memory, dense ones on small pages three times the time.
    let sparse = AddressRange(start: mapping.range.start, count: copies)
    do throws(PinError) {
      try Memory.advise(sparse, isHuge ? .hugePages : .noHugePages)
      if !isHuge { try Memory.advise(AddressRange(start: sparse.start + UInt(denseOffset), count: copies), .hugePages) }
    } catch {}
    // Without these a child or a core dump is larger, nothing else.
    for advice in [Memory.Advice.dontFork, .dontDump] {
      do throws(PinError) { try Memory.advise(mapping.range, advice) } catch {}
    }
  }

  func marks(_ index: Int) -> UInt { start + UInt(marksStart + index * marksSize) }

  /// Forgets which pages there are copies of. The copies stay, as memory for the next ones; false if the kernel refused.
  fileprivate func clearMarks() -> Bool {
    Memory.adviseResult(AddressRange(start: marks(0), count: Self.marksCount * marksSize), .dontNeed) == 0
  }
}

/// Keeps the memory of the last store for the next one, for a while: memory that the kernel has not to find and to fill with zeros first
/// makes a capture cheaper by a third. Whoever takes snapshots every few seconds gains, and nobody keeps the memory for long.
final class CaptureRecycler: Sendable {
  /// In nanoseconds.
  private static let patience: UInt64 = 10_000_000_000
  private struct State {
    var spare: CaptureMemory?
    /// When it was put here.
    var since: UInt64 = 0
    /// Whether the watchdog asks for it.
    var isWatched = false
    var keepsNothing = false
  }
  private let state = Mutex(State())
  private let handler: FaultHandler
  private let forkGeneration = Kernel.forkGeneration

  init(handler: FaultHandler) { self.handler = handler }

  /// Memory for a store, used or new.
  func take(for region: Region) throws(PinError) -> CaptureMemory {
    if let used = state.withLock({ $0.spare.take() }) { return used }
    return try CaptureMemory(region: region)
  }

  /// Nobody uses the memory any more.
  func put(_ memory: CaptureMemory) {
    // A child of fork() has other memory there.
    guard forkGeneration == Kernel.forkGeneration, memory.clearMarks() else { return }
    let (old, isWatched) = state.withLock { state -> (CaptureMemory?, Bool) in
      if state.keepsNothing { return (nil, true) }
      let before = (state.spare, state.isWatched)
      state = State(spare: memory, since: Kernel.now(), isWatched: true)
      return before
    }
    _ = old
    if !isWatched { handler.everyTick { [weak self] in self?.expire() ?? false } }
  }

  /// True if it wants to be asked again.
  private func expire() -> Bool {
    let (old, isWatched) = state.withLock { state -> (CaptureMemory?, Bool) in
      let isOver = Kernel.now() - state.since > Self.patience
      let old = isOver ? state.spare.take() : nil
      state.isWatched = state.spare != nil
      return (old, state.isWatched)
    }
    _ = old
    return isWatched
  }

  /// From now on no memory is kept to be used again: it has bytes that nobody may find.
  func keepsNothing() {
    let old = state.withLock { state in
      state.keepsNothing = true
      return state.spare.take()
    }
    _ = old
  }

  func drop() {
    let old = state.withLock { $0.spare.take() }
    _ = old
  }
}
