internal import Synchronization

/// What becomes of pages that are pinned when their region is to lose them.
public enum PinnedPages: Sendable, Hashable {
  /// The call throws `.pinned`, and nothing has changed.
  case fail
  /// The call blocks until nobody has them pinned. A thread that holds one of the pins itself waits for ever.
  case wait
  /// The pages go, and the pins keep their frames until they are dropped. Of whole `.pool` regions only: other memory has no frames that
  /// outlive its pages.
  case leaveFrames
}

/// Keeps pins and drops apart: whoever drops pages counts itself and then looks for pins, whoever pins counts its pin and then
/// looks for drops. One of the two sees the other; a pin gives way, and waits until the drop is over.
struct PinGate: ~Copyable, Sendable {
  private let drops = Atomic<Int>(0)
  /// Threads that would pin as soon as they may: the next drop lets them. A courtesy: seen late, a drop waits for nobody, or for no reason.
  private let waiting = Atomic<Int>(0)

  @inline(__always) var isDropping: Bool { drops.load(ordering: .sequentiallyConsistent) != 0 }

  func beginDrop(patiently: Bool = true) {
    if patiently {
      for _ in 0..<20 where waiting.load(ordering: .relaxed) != 0 { Kernel.pause(nanoseconds: 50_000) }
    }
    drops.add(1, ordering: .sequentiallyConsistent)
    // What is looked at next, an index among it, is not read before.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
  }
  func endDrop() { drops.subtract(1, ordering: .sequentiallyConsistent) }

  /// Waits for a moment for drops to end.
  func waitBriefly() {
    waiting.add(1, ordering: .relaxed)
    Kernel.pause(nanoseconds: 20_000)
    waiting.subtract(1, ordering: .relaxed)
  }
}

extension Region {
  /// Whether a page is pinned, through this region or another that has its frame. May say so for a moment of a page that somebody tried to
  /// pin in vain, or of a frame that a thousand lookups hold; never the other way round (P4).
  ///
  /// - Throws: ``PinError`` `.outOfBounds`, `.notInherited`.
  public func mayBePinned(_ page: Int) throws(PinError) -> Bool {
    try requirePage(page)
    guard space.isOfThisProcess else { throw .notInherited("mayBePinned") }
    if table.current(page).isPinned { return true }
    guard let frames, !gate.isClosed else { return false }
    return unsafe frames.extent(of: page).pointee.counts(page).mayBePinned
  }

  /// Keeps `pages` from being pinned until ``PinGate/endDrop()``, if none is now.
  func beginDrop(
    _ pages: Range<Int>, _ operation: StaticString, whilePinned: PinnedPages, patiently: Bool = true
  ) throws(PinError) {
    while true {
      pinGate.beginDrop(patiently: patiently)
      if whilePinned == .leaveFrames { return }
      let pinned = table.pinnedRuns(in: pages)
      if pinned.isEmpty { return }
      pinGate.endDrop()
      if whilePinned == .fail { throw memory.pinnedError(pinned, operation) }
      if gate.isClosed { throw PinError(.unmapped, operation: "\(operation)", range: addresses) }
      Kernel.pause(nanoseconds: 50_000)
    }
  }
}
