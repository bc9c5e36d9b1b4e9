internal import Synchronization

/// How the write faults of a region reach PinKit.
enum FaultDelivery: UInt8, Sendable, AtomicRepresentable {
  /// Nothing is protected.
  case none
  /// A userfaultfd that reader threads read.
  case handlerThread
  /// SIGBUS in the faulting thread (`UFFD_FEATURE_SIGBUS`).
  case inPlace
  /// SIGSEGV in the faulting thread (`mprotect`).
  case mprotect
  /// The kernel resolves faults by itself (`WP_ASYNC`); a userfaultfd carries events only.
  case asynchronous
}

/// All that resolving a fault of one region needs, preallocated: fault handlers reach it through a raw pointer, and it lives
/// until no handler can.
///
/// Made when a region is first protected, freed after the region is unmapped.
struct FaultDomain: ~Copyable, Sendable {
  /// The region's id.
  let region: UInt64
  let addresses: AddressRange
  let pageSize: Int
  let table: PageTable
  let counters: FaultCounters
  let lock: WriteProtectLock
  let faultAround = FaultAround()
  /// In nanoseconds: how long the kernel may keep asking to retry.
  let patience: UInt64
  /// The watchdog's.
  let alarm: Alarm

  let delivery = Atomic<FaultDelivery>(.none)
  /// The userfaultfds, a slice of the region each.
  let channels: InlineArray<16, FaultChannel>
  private let mostSlices: Int
  /// By which a page's number becomes that of its slice. Changes while nothing is protected.
  let sliceShift: Atomic<Int>
  let isPrivateAnonymous: Bool
  /// Whether other code may guard its pages, or truncate them away: it is read by checked copies only (K6).
  let isForeign: Bool
  /// Counts exclusive operations: a message read before one and handled after it may be stale.
  let generation = Atomic<UInt64>(0)
  /// Zero, or why faults cannot be served any more (`Failure.rawValue << 32 | errno`). Set once: who does not see it yet does what it would have
  /// done before, and whoever hands out sets or bytes looks again when it has them.
  let failure = Atomic<UInt64>(0)
  /// The callback of the first write to a page: an unretained `FirstWriteCallbacks`, or 0.
  let callbacks = Atomic<UInt>(0)
  /// What bytes are owed to snapshots: an unretained `OwedBytes`, or 0.
  let owed = Atomic<UInt>(0)
  /// Whose frames its pages are: an unretained `FrameSharing`, or 0.
  let sharing = Atomic<UInt>(0)
  /// Where pages come from that are not there: an unretained `PageSource`, or 0. Set once, before the region is handed out, and taken
  /// away when it is not mapped any more, after whoever may read it was waited for.
  let source = Atomic<UInt>(0)
  /// Who may have the bytes of pages: an unretained `AccessDecision`, or 0 where no page was ever sealed. Set while nothing is protected: who
  /// still reads 0 meets no sealed page, as the wrprotect lock is held exclusively once before the first is sealed.
  let seals = Atomic<UInt>(0)
  /// Who is told before pages change: an unretained `RegionNotifications`, or 0 while nobody ever subscribed.
  let subscribers = Atomic<UInt>(0)
  /// Whether a subscriber ever refused a change that a fault wanted to make.
  let wasRefused = Atomic<Bool>(false)
  /// Why there was no frame the last time that a shared page was to be copied for its writer: an errno, or 0. As ``wasRefused`` it may be
  /// another fault's that is read, or was: nothing goes by the two but what a failure is called.
  let copyError = Atomic<CInt>(0)
  /// Whether pages may be opened along with a neighbour where that saves a copy of its own: nobody asked for exact sets. Taken back before the
  /// harvest from which on somebody's are exact, which holds the lock exclusively: a fault that does not see it yet comes before that.
  let opensChunks = Atomic<Bool>(true)
  let density: WriteDensity
  /// How many times bytes began to be kept, and how many times that ended.
  let keepsBegun = Atomic<UInt64>(0)
  let keepsEnded = Atomic<UInt64>(0)
  /// How many readers may have read of a removal and not noted it yet: the kernel drops the pages as soon as that was read.
  let unsettled = Atomic<Int>(0)
  /// The pages that `Region.discard(_:)` is dropping, kept before: their removal is no news.
  let droppingFrom = Atomic<Int>(0)
  /// How often that was set, twice each time: odd while it changes.
  let droppingTurns = Atomic<UInt64>(0)
  let droppingTo = Atomic<Int>(0)
  /// The bytes whose mapping ``MappingDrops`` is dropping and of which the kernel has not said so yet; 0 where it is not.
  let ownDropFrom = Atomic<UInt>(0)
  let ownDropTo = Atomic<UInt>(0)
  /// Of the fault handler, which outlives the domain.
  private let drops: UInt
  /// When the wrprotect lock was last taken exclusively.
  let exclusiveSince = Atomic<UInt64>(0)
  /// Pages went to other frames, and their new mapping is not registered with the userfaultfd yet. It must be before they
  /// are protected again. Set with their claims held: who misses it has claimed other pages.
  let needsRegistration = Atomic<Bool>(false)
  /// Whether the region is registered for minor faults: pages on huge frames, which are protected by not being mapped. Changes under the
  /// exclusive lock, while nothing is protected, or with the delivery as a region that failed is lifted: who goes by an older one then maps a page
  /// that nobody needs mapped.
  let hasMinorFaults = Atomic<Bool>(false)
  /// Huge mappings were dropped to protect their pages, and should be put back. Seen late, that is done at the watchdog's next look.
  let lostHugeMappings = Atomic<Bool>(false)
  /// How many mappings more the region has for its pages that are open under mprotect.
  let cuts = Atomic<Int>(0)
  let mayHaveHugeFrames: Bool
  /// Odd while pages that are pinned for writing are protected for a moment; even, and another number, after.
  let pinClosings = Atomic<UInt64>(0)
  /// Of a pool region, which outlives whoever is in here.
  private let frames: UInt

  enum Failure: UInt32, Sendable {
    case descriptorClosed = 1
    case refused
    case timedOut
    case readerDied
    case mappingChanged
    case subscriberBlocked
    case storeEnded
    case storeSilent
    case noFrame
    case poolClosed
  }

  init(region: Region, counters: FaultCounters, patience: Double, alarm: Alarm, drops: MappingDrops) {
    self.drops = unsafe UInt(bitPattern: Unmanaged.passUnretained(drops).toOpaque())
    self.region = region.id
    addresses = region.addresses
    pageSize = region.pageSize
    table = region.table
    isPrivateAnonymous = region.backing.isPrivateAnonymous
    isForeign = region.isAdopted
    mayHaveHugeFrames = region.backing.mayHaveHugeFrames
    frames = region.frames.map { unsafe UInt(bitPattern: Unmanaged.passUnretained($0).toOpaque()) } ?? 0
    self.counters = counters
    self.patience = Kernel.nanoseconds(patience)
    self.alarm = alarm
    lock = WriteProtectLock(counters: counters)
    density = WriteDensity(pageCount: region.pageCount)
    let shift = region.space.configuration.slices.shift(addresses: addresses, pageSize: pageSize)
    let slices = (region.pageCount - 1) >> shift + 1
    mostSlices = SliceBudget.take(slices - 1) ? slices : 1
    sliceShift = Atomic(mostSlices == slices ? shift : RegionSlices.whole)
    channels = InlineArray { _ in FaultChannel(alarm: alarm) }
  }

  deinit { SliceBudget.giveBack(mostSlices - 1) }

  /// Runs `body` with what is owed to snapshots, if anything is. The object lives as long as the shared lock is held.
  @inline(__always) func withOwedBytes<Result>(_ body: (OwedBytes) -> Result) -> Result? {
    let raw = owed.load(ordering: .acquiring)
    guard raw != 0 else { return nil }
    return unsafe Unmanaged<OwedBytes>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!)._withUnsafeGuaranteedRef { body($0) }
  }

  @inline(__always) func withSharing<Result>(_ body: (FrameSharing) -> Result) -> Result? {
    let raw = sharing.load(ordering: .acquiring)
    guard raw != 0 else { return nil }
    return unsafe Unmanaged<FrameSharing>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!)._withUnsafeGuaranteedRef {
      body($0)
    }
  }

  /// Drops the mapping of `range`, as ``MappingDrops/drop(_:in:)`` does: slice by slice, as the kernel tells of each by its own userfaultfd.
  func dropMapping(_ range: AddressRange) -> CInt {
    unsafe Unmanaged<MappingDrops>.fromOpaque(UnsafeRawPointer(bitPattern: drops)!)._withUnsafeGuaranteedRef { drops in
      // What is to be moved here next is registered with one.
      guard range.overlaps(addresses) else { return drops.drop(range, in: self) }
      var start = range.start
      while start < range.end {
        let end = min(range.end, addresses(ofSlice: slice(of: page(at: start))).end)
        let result = drops.drop(AddressRange(start: start, end: end), in: self)
        if result != 0 { return result }
        start = end
      }
      return 0
    }
  }

  @inline(__always) var hasSource: Bool { source.load(ordering: .relaxed) != 0 }

  @inline(__always) func withSource<Result>(_ body: (PageSource) -> Result) -> Result? {
    let raw = source.load(ordering: .acquiring)
    guard raw != 0 else { return nil }
    return unsafe Unmanaged<PageSource>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!)._withUnsafeGuaranteedRef { body($0) }
  }

  @inline(__always) var hasSeals: Bool { seals.load(ordering: .relaxed) != 0 }

  @inline(__always) func withSeals<Result>(_ body: (AccessDecision) -> Result) -> Result? {
    let raw = seals.load(ordering: .acquiring)
    guard raw != 0 else { return nil }
    return unsafe Unmanaged<AccessDecision>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!)._withUnsafeGuaranteedRef {
      body($0)
    }
  }

  /// Whether the page's bytes are sealed: whoever maps it must come through ``AccessDecision/admit(_:in:)``.
  @inline(__always) func isSealed(_ page: Int) -> Bool { hasSeals && withSeals { $0.isSealed(page) } == true }

  /// Whether an access is an error of the memory: its store, or its seal.
  func isRefused(_ page: Int) -> Bool {
    withSource { $0.isRefused(page) } == true || withSeals { $0.isRefused(page) } == true
  }

  /// Whether a page may be opened that was not faulted on: it is there, not sealed, and its store agrees.
  @inline(__always) func mayTakeAlong(_ page: Int) -> Bool {
    if isSealed(page) { return false }
    guard hasSource else { return true }
    return withSource { $0.mayTakeAlong(page) } ?? true
  }

  @inline(__always) func withNotifications<Result>(_ body: (RegionNotifications) -> Result) -> Result? {
    let raw = subscribers.load(ordering: .acquiring)
    guard raw != 0 else { return nil }
    return unsafe Unmanaged<RegionNotifications>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!)._withUnsafeGuaranteedRef {
      body($0)
    }
  }

  @inline(__always) func page(at address: UInt) -> Int { Int(address - addresses.start) / pageSize }

  @inline(__always) func addresses(of pages: Range<Int>) -> AddressRange {
    AddressRange(
      start: addresses.start + UInt(pages.lowerBound * pageSize),
      end: addresses.start + UInt(pages.upperBound * pageSize))
  }

  /// Runs `body` with the frames of a pool region.
  @inline(__always) func withFrames<Result>(_ body: (RegionFrames) -> Result) -> Result? {
    guard frames != 0 else { return nil }
    return unsafe Unmanaged<RegionFrames>.fromOpaque(UnsafeRawPointer(bitPattern: frames)!)._withUnsafeGuaranteedRef {
      body($0)
    }
  }

  /// Whether pages may be there and not mapped, and trap then: they are read where the pool itself maps them.
  @inline(__always) var readsDirectly: Bool { hasMinorFaults.load(ordering: .relaxed) || hasSource }

  /// Where the bytes of `page` can be read without a fault that would have to be served.
  @inline(__always) func readableAddress(of page: Int) -> UInt {
    if readsDirectly, let address = withFrames({ $0.directAddress(of: page) }) { return address }
    return addresses.start + UInt(page * pageSize)
  }

  /// Notes that the kernel is about to drop the pages of `range` (`MADV_DONTNEED` behind PinKit's back): they change, and their
  /// protection goes with them. `keepsBefore` is what ``keepsEnded`` said before that was read.
  func recordDiscard(_ range: AddressRange, keepsBefore: UInt64) {
    let inside = range.clamped(to: addresses)
    guard !inside.isEmpty else { return }
    let pages = page(at: inside.start)..<page(at: inside.end - 1) + 1
    table.discarded.insert(pages)
    withSource { $0.lose(pages) }
    if isDropping(pages) { return }
    // Bytes that were kept meanwhile may have been zeros already. Asked after it was seen what is kept: who keeps counts itself in first.
    withOwedBytes { $0.lose(pages) { keepsBegun.load(ordering: .sequentiallyConsistent) == keepsBefore } }
  }

  /// Whether `Region.discard(_:)` is dropping all of `pages`.
  private func isDropping(_ pages: Range<Int>) -> Bool {
    let turn = droppingTurns.load(ordering: .sequentiallyConsistent)
    let end = droppingTo.load(ordering: .sequentiallyConsistent)
    let start = droppingFrom.load(ordering: .sequentiallyConsistent)
    guard turn.isMultiple(of: 2), droppingTurns.load(ordering: .sequentiallyConsistent) == turn else { return false }
    return start <= pages.lowerBound && pages.upperBound <= end
  }

  /// True if a protection change is done, false if the kernel asked to try again.
  ///
  /// - Throws: For everything else; where the region can no longer be vouched for, it is marked as failed.
  func settle(
    _ result: UffdResult, _ operation: String, _ range: AddressRange
  ) throws(PinError) -> Bool {
    switch result {
    case .done: return true
    case .again:
      counters.add(.retries)
      return false
    case .gone: fail(.mappingChanged, errno: result.errno)
    case .refused(UffdResult.badDescriptor):
      fail(.descriptorClosed, errno: result.errno)
    case .refused: break
    }
    throw .kernel(Int(-result.errno), operation, range)
  }

  /// All pages have the same rights again.
  func forgetCuts() { MappingBudget.subtract(cuts.exchange(0, ordering: .relaxed)) }

  /// Records the first failure and calls the watchdog. Async-signal-safe.
  func fail(_ failure: Failure, errno: CInt) {
    let value = UInt64(failure.rawValue) << 32 | UInt64(UInt32(bitPattern: errno))
    let (first, _) = self.failure.compareExchange(expected: 0, desired: value, ordering: .sequentiallyConsistent)
    if first { Alarm.ring(alarm) }
  }
}
