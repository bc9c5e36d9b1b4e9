internal import Synchronization

/// The pages of a region over a store: which are there, which have changed, and what is under way.
///
/// A page that is not there traps (`UFFDIO_REGISTER_MODE_MISSING`, or `_MINOR` where the pool has something that nobody put there) and is filled, write-protected, by one thread: a fault reader where the
/// store has the bytes at hand, a thread of ``StoreThreads`` where it must be waited for. One that is there and was not written since it was
/// last clean traps when it is written:
///
///     fault ─► the page is claimed and its frame locked
///           ─► the store agrees                       (`pageMakeWritable`; not: the writer gets SIGBUS, the page stays as it is)
///           ─► `dirty`, then writable                 (N3)
///           ─► unlocked
///
/// All marks of a page change while its claim is held, or by whoever set `filling`, which keeps everybody else off it.
@safe final class FilePages: PageSource, @unchecked Sendable {  // marks are atomics, the rest constants and mutexes
  let store: any PageStore
  let threads: StoreThreads
  let queue: StoreQueue
  private let metadata: Mapping
  /// Their bytes are in memory.
  let present: PageMarks
  /// What the pool has of them was put there: also where other code has dropped the mapping since, and they are not present. For others the pool
  /// may have something all the same, which nobody put there: whoever locks memory has the kernel fill every mapping, the pool's own too.
  let placed: PageMarks
  /// Somebody brings them in, or asks the store whether they may be written.
  let filling: PageMarks
  /// Whoever touches them now gets an error.
  let refused: PageMarks
  /// The store has agreed to their being written.
  let granted: PageMarks
  /// Their bytes are on their way to the store and may not change.
  let writeback: PageMarks
  /// Their bytes in memory are newer than in the store.
  let dirty: PageBitmap
  /// They are not dirty any more, and the store has not made them durable yet.
  let unflushed: PageMarks
  let windows: FillWindows
  let session: TrackingSession
  /// Requests that ``StoreThreads`` have of it.
  let outstanding = Atomic<Int>(0)
  /// The region is about to go, and no more of them are made: who touches a page that is not there tries again until it is gone.
  let isGoing = Atomic<Bool>(false)
  /// How many of them have been done, ever.
  let requestsDone = Atomic<UInt64>(0)
  /// How many need every page to stay.
  let stays = Atomic<Int>(0)
  let refusals = Mutex<[Int: PinError]>([:])
  let flushing = Mutex(Flushes())
  let flushesBegun = Atomic<UInt64>(0)

  struct Flushes {
    /// Which flush was the last that went well.
    var lastGood: UInt64 = 0
  }

  init(region: Region, store: any PageStore, fillAround: FillAround) throws(PinError) {
    self.store = store
    let pageCount = region.pageCount
    threads = try region.space.storeThreads()
    queue = threads.queue(of: store)
    windows = FillWindows(fillAround)
    metadata = try Mapping.forNotes(
      count: 64 + 7 * PageMarks.size(pageCount: pageCount) + PageBitmap.size(pageCount: pageCount))
    let tops = unsafe metadata.start.bindMemory(to: Atomic<UInt64>.self, capacity: 8)
    var memory = unsafe metadata.start + 64
    present = unsafe PageMarks(from: &memory, pageCount: pageCount)
    placed = unsafe PageMarks(from: &memory, pageCount: pageCount)
    filling = unsafe PageMarks(from: &memory, pageCount: pageCount)
    refused = unsafe PageMarks(from: &memory, pageCount: pageCount)
    granted = unsafe PageMarks(from: &memory, pageCount: pageCount)
    writeback = unsafe PageMarks(from: &memory, pageCount: pageCount)
    unflushed = unsafe PageMarks(from: &memory, pageCount: pageCount)
    dirty = unsafe PageBitmap(memory: memory, top: tops, pageCount: pageCount)
    session = try region.session(region.protection())
    try super.init(region)
  }

  /// Connects it to the fault path and begins. Nobody has seen the region yet.
  func begin(_ region: Region) throws(PinError) {
    try frames.mapDirectly()
    let raw = unsafe UInt(bitPattern: Unmanaged.passUnretained(self as PageSource).toOpaque())
    unsafe protection.domain.pointee.source.store(raw, ordering: .sequentiallyConsistent)
    do throws(PinError) {
      let id = try session.join(region, .handlerThread, keepsPages: false) { _ in }
      participant.withLock { $0 = id }
      try dropStrangers()
    } catch {
      throw PinError(
        error.code, operation: "map a store", errno: error.errno, range: addresses,
        advice: "Pages of a store come in by userfaultfd, in handler threads: \(error)")
    }
  }

  // MARK: Asking the threads

  /// False if they have no room; the caller tries again.
  func ask(_ kind: StoreThreads.Request.Kind, _ page: Int, _ pages: Range<Int>) -> Bool {
    outstanding.add(1, ordering: .sequentiallyConsistent)
    let target = unsafe UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque())
    // In this order: whoever has set it and finds nothing under way has seen the last.
    if !isGoing.load(ordering: .sequentiallyConsistent),
      threads.add(StoreThreads.Request(kind: kind, page: page, pages: pages, target: target), to: queue)
    {
      return true
    }
    outstanding.subtract(1, ordering: .sequentiallyConsistent)
    return false
  }

  /// On a thread that may wait for the store.
  func perform(_ request: StoreThreads.Request, by worker: StoreWorker) {
    switch request.kind {
    case .fill: fill(request.pages, for: request.page, through: worker.buffer.range)
    case .makeWritable: makeWritable(request.page, by: worker)
    }
  }

  func wake(_ pages: Range<Int>) { unsafe FaultPath.wake(pages, in: protection.domain.pointee) }

  // MARK: What the fault path asks

  override func supply(
    _ page: Int, through buffer: AddressRange, in domain: borrowing FaultDomain, noteClaims: (Range<Int>) -> Void
  ) -> FaultResolution {
    bring(page, through: buffer, in: domain, noteClaims: noteClaims)
  }
  override func admit(_ page: Int, in domain: borrowing FaultDomain) -> Admission { admitWrite(page, in: domain) }
  override func dismiss(_ page: Int, _ extent: UInt) { unsafe Extent.Pointer(bitPattern: extent)!.pointee.unlock(page) }
  override func holdPresent(_ pages: Range<Int>) -> Bool { (try? keepPresent(pages)) != nil }
  override func mayLeave() { stays.subtract(1, ordering: .sequentiallyConsistent) }

  override func isPresent(_ page: Int) -> Bool { present.contains(page) && !filling.contains(page) }
  override func isUnderWriteback(_ page: Int) -> Bool { writeback.contains(page) }
  override func isGranted(_ page: Int) -> Bool { granted.contains(page) }
  override func isRefused(_ page: Int) -> Bool { refused.contains(page) }
  override func willOpen(_ pages: Range<Int>) { dirty.insert(pages) }

  override func mayTakeAlong(_ page: Int) -> Bool {
    present.contains(page) && granted.contains(page) && !writeback.contains(page) && !filling.contains(page)
  }

  override func lose(_ pages: Range<Int>) { present.remove(pages) }
}

extension FilePages: RegionAttachment {
  func regionDidUnmap() {
    // Snapshots keep the domain, and nothing keeps this object.
    unsafe protection.domain.pointee.source.store(0, ordering: .sequentiallyConsistent)
  }

  func regionWillUnmap() {
    guard isOfThisProcess else { return }
    // Nobody who lifts a refusal is in the middle of it when the memory goes.
    refusals.withLock { _ in isOver.store(true, ordering: .sequentiallyConsistent) }
    participant.withLock { $0 = nil }
    // The protection has ended, and no fault asks for anything any more. A store that never returns is waited for without end: it uses the
    // region. Whoever calls unmap() hears of that before; who drops the region, does not.
    while outstanding.load(ordering: .sequentiallyConsistent) != 0 { Kernel.pause(nanoseconds: 100_000) }
  }
}

/// What makes regions over a store.
final class FileBacking: StoredPages, @unchecked Sendable {
  private let fillAround: FillAround

  init(_ store: any PageStore, _ fillAround: FillAround) {
    self.fillAround = fillAround
    super.init(store)
  }

  override func attach(to region: Region) throws(PinError) {
    guard FillWindows.check(fillAround) else {
      throw PinError(
        .invalidArgument, operation: "map a store",
        advice: "A fault brings in 1 to \(FillWindows.maximum) pages; blocks are powers of two.")
    }
    let pages = try FilePages(region: region, store: store, fillAround: fillAround)
    _ = try region.attachments.findOrMake(FilePages.self) { pages }
    try pages.begin(region)
  }
}

extension Backing {
  /// Pages that come from a store when they are first touched, and go back to it when they have changed: at ``Region/flush()``, and before the
  /// region goes.
  ///
  /// Needs userfaultfd; faults are served by handler threads. Frames are the address space's pool's, so that they can be shared with
  /// clones; a clone is memory of its own and is written back nowhere.
  public static func file(_ store: any PageStore, fillAround: FillAround = .adaptive()) -> Backing {
    Backing(kind: .file(FileBacking(store, fillAround)))
  }
}
