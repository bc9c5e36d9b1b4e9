internal import Synchronization

/// Points in the fault path where a test can stop a thread; nothing sets them but tests, and tools that draw what they see.
///
/// A disarmed hook costs one relaxed load.
enum TestHooks {
  enum Point: Int {
    /// The wrprotect lock was just taken exclusively.
    case exclusiveHeld
    /// Some, but not all, of a range has been protected.
    case protecting
    /// A thread has a piece of a large range, and is about to protect it; gets the number of the piece.
    case protectingPiece
    /// A fault handler has the shared lock and the claim, and is about to decide.
    case deciding
    /// A signal handler has found nothing to resolve, and is about to look whether the access is worth another try.
    case tryingAgain
    /// The page was unprotected, and is not yet recorded.
    case unprotected
    /// What snapshots are owed was kept, and the page is still protected.
    case kept
    /// Bytes are about to be copied for a snapshot.
    case capturing
    /// A reader of a snapshot has found that nothing was kept of a page, and is about to read the region.
    case readingLive
    /// It was read from a userfaultfd that pages are dropped, and is not noted yet.
    case removing
    /// What is owed of pages that other code drops is about to be looked at.
    case losing
    /// A region has its descriptors, and no delivery yet.
    case taken
    /// Readers have just begun to hear of a userfaultfd.
    case connecting
    /// It was read from a userfaultfd that other code has moved the mapping, and the region has not failed yet.
    case remapping
    /// Pages of a region that nothing protects are about to be dropped.
    case dropping
    /// The bytes were copied to another frame, which is not mapped yet.
    case copied
    /// Somebody subscribes, and the page has no frame at this moment.
    case cleared
    /// It has its new one, and nobody was told yet.
    case set
    /// The other frame is mapped, and the counts do not say so yet.
    case mapped
    /// The mappings of an extent were counted, and a frame of it is about to be frozen.
    case freezing
    /// A clone counts as a mapping of every frame of the base, and those that it does not map are not taken off yet.
    case counted
    /// A pin has its references, and the frame is not yet noted as its owner's.
    case pinned
    /// A pin is about to be counted without a lock.
    case pinning
    /// A pin was counted without a lock, and has not looked for operations beside it yet.
    case pinCounted
    /// A pin has given its references back, and the page is still counted as pinned.
    case unpinning
    /// Fixed buffers are being closed, and operations on them are about to be waited for; gets how many.
    case finishingTransfers
    /// A huge mapping was moved over its pages; where it was made there is room now.
    case moved
    /// A secondary MMU has a sequence number, and is about to ask for a page.
    case translating
    /// It has a translation, and is about to install it.
    case translated
    /// The page is claimed and its frame locked, and its store is about to be asked whether it may be written.
    case granting
    /// Whoever touches the page is about to get an error.
    case refusing
    /// The private data of a frame may be given up as far as was seen, and its references are about to be frozen.
    case releasing
    /// A sealed page is about to be opened.
    case opening
    /// Pages are frozen and unmapped, and about to be sealed.
    case sealing
    /// Pages that are about to be written to their store were taken off the record of those that have changed.
    case draining
    /// Pages are under writeback, and about to be written to their store.
    case writingBack
    /// The watchdog is about to look at the threads that serve faults.
    case watching
    /// A reader thread is about to wait.
    case readerIdle
    /// A thread for stores is about to wait for work.
    case storeIdle
    /// The sweep is about to keep the first of some pages.
    case sweeping
    /// The thread that takes pages out of mappings has been asked to, and has not begun.
    case unmapping
    /// What the pool had of a page that nobody else has is gone, and its bytes are not there yet.
    case punched
    /// A file of an image was made, renamed, removed or synced; gets the number of such steps of this image so far.
    case imageStep
    /// Nobody can bring a page into a part of a region whose page tables are given back: 0 before what is empty is dropped, 1 after.
    case holdingMissing
    /// The buffers of an image are about to be unmapped; gets the address of the first.
    case freeingBuffers
    /// The mappings of the process were counted, and how many of them are PinKit's is about to be taken off.
    case mappingsCounted
    /// All pages are about to be protected for a snapshot.
    case arming
    /// A slice was protected before the moment of a snapshot, and the lock is free; gets the page behind it.
    case armedSlice
    /// A reader was turned away, and is about to be waited for.
    case givingWay
    /// Who wants a reference of a frame has found its references frozen, and is about to look again.
    case spinning
    /// A page of a store is to be dropped, is neither under writeback nor unflushed, and is about to be looked for among the dirty ones.
    case reclaiming
    /// Pages that have other frames are about to be noted as such, and how many pieces there were around them was counted.
    case moving
    /// A region is about to be known to its space.
    case enrolling
  }

  typealias Hook = @Sendable (Int) -> Void

  /// Seen late, a point is passed without its hook, or has none to run: whoever sets one sees to what comes before and after.
  private static let armed = Atomic<UInt>(0)
  private static let hooks = Mutex<[Int: Hook]>([:])

  /// Installs `hook` at `point`, or removes it. It gets the page, where there is one.
  static func set(_ point: Point, _ hook: Hook?) {
    hooks.withLock { hooks in
      hooks[point.rawValue] = hook
      let bits = hooks.keys.reduce(UInt(0)) { $0 | 1 << UInt($1) }
      armed.store(bits, ordering: .sequentiallyConsistent)
    }
  }

  /// Has what is made when it is first used made now.
  static func prepare() {
    _ = armed.load(ordering: .relaxed)
    hooks.withLock { _ in }
  }

  @inline(__always) static func reach(_ point: Point, page: Int = 0) {
    if armed.load(ordering: .relaxed) & (1 << UInt(point.rawValue)) != 0 { run(point, page) }
  }

  @inline(__always) static func exclusiveHeld() { reach(.exclusiveHeld) }

  @inline(never) private static func run(_ point: Point, _ page: Int) {
    hooks.withLock { $0[point.rawValue] }?(page)
  }
}
