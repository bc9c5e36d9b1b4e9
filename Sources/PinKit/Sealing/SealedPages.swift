internal import Synchronization

/// The sealed pages of a region: which they are, what their sealer needs to open them, and the one way to their bytes.
///
/// A sealed page stays where it is (S4): its bytes in the frame are unreadable, and it is not in the region's page table, so that whoever
/// touches it takes a fault. Sealing one, with the page claimed:
///
///     everybody who has translations of it is told              (start; they give them up)
///     ─► its frame is locked, its references are frozen          (fails if anybody else has one: `.busy`, S2)
///     ─► its mapping is dropped                                  (no access is on its way any more)
///     ─► transformed, marked as sealed
///     ─► unfrozen, unlocked                                      (lookups have spun meanwhile: S3)
///     ─► end
///
/// Whoever wants its bytes takes a reference first and then calls ``admit(_:in:)``, which opens it: so it cannot be sealed before he is done
/// (S1, S5). A fault needs no reference: it holds the claim until the page is mapped, and whoever seals afterwards drops that mapping.
@safe final class SealedPages: CopyDecision, @unchecked Sendable {
  // Unchecked: marks are atomics, and records belong to who has the claim.
  let sealer: any PageSealer
  let options: SealingOptions
  let session: TrackingSession
  private let metadata: Mapping
  let sealed: PageMarks
  /// Their sealed bytes were changed by somebody: they never open.
  let poisoned: PageMarks
  /// Whoever touches them gets an error.
  let refused: PageMarks
  /// They are open, and were touched since the idle timer looked last.
  let used: PageMarks
  /// They are open, and were not in the page table when it looked last.
  let idle: PageMarks
  private let entries: UnsafeMutableRawPointer
  private let entrySize: Int
  private let generations = Atomic<UInt64>(0)
  /// What has copies of pages for snapshots, as long as it is there: each knows what was sealed at its moment.
  let stores = Mutex<[WeakStore]>([])
  /// Whether any page ever was: from then on nobody may read the region without being asked.
  let hasEverSealed = Atomic<Bool>(false)
  /// Held while the idle timer looks at a page; true once it may not look at any.
  let idling = Mutex(false)
  /// The last page that turned out tampered with, plus one, until it is logged.
  let poisonedNews = Atomic<Int>(0)

  struct WeakStore: Sendable { weak var store: CaptureStore? }

  /// - Parameter isUntouched: See ``TrackingSession``.
  init(
    region: Region, sealer: any PageSealer, options: SealingOptions, isUntouched: Bool = false
  ) throws(PinError) {
    self.sealer = sealer
    self.options = options
    let pageCount = region.pageCount
    entrySize = (SealRecord.headerSize + sealer.recordSize + 7) & ~7
    metadata = try Mapping.forNotes(count: 5 * PageMarks.size(pageCount: pageCount) + pageCount * entrySize)
    var memory = unsafe metadata.start
    sealed = unsafe PageMarks(from: &memory, pageCount: pageCount)
    poisoned = unsafe PageMarks(from: &memory, pageCount: pageCount)
    refused = unsafe PageMarks(from: &memory, pageCount: pageCount)
    used = unsafe PageMarks(from: &memory, pageCount: pageCount)
    idle = unsafe PageMarks(from: &memory, pageCount: pageCount)
    unsafe entries = memory
    session = try region.session(region.protection(), isUntouched: isUntouched)
    FaultTypes.compare(options.onAccess)
    try super.init(region)
  }

  // MARK: Records

  func entry(_ page: Int) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(start: entries + page * entrySize, count: entrySize)
  }

  func identity(_ page: Int) -> PageIdentity {
    let header = unsafe entry(page)
    return unsafe PageIdentity(
      region: header.load(fromByteOffset: 0, as: UInt64.self), page: header.load(fromByteOffset: 8, as: Int.self),
      generation: header.load(fromByteOffset: 16, as: UInt64.self))
  }

  func setIdentity(_ identity: PageIdentity, of page: Int) {
    let header = unsafe entry(page)
    unsafe header.storeBytes(of: identity.region, toByteOffset: 0, as: UInt64.self)
    unsafe header.storeBytes(of: identity.page, toByteOffset: 8, as: Int.self)
    unsafe header.storeBytes(of: identity.generation, toByteOffset: 16, as: UInt64.self)
  }

  func record(_ page: Int) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(
      start: entries + page * entrySize + SealRecord.headerSize, count: sealer.recordSize)
  }

  func nextIdentity(_ page: Int) -> PageIdentity {
    PageIdentity(region: region, page: page, generation: generations.add(1, ordering: .relaxed).newValue)
  }

  /// Where the bytes of the page's frame are, whoever maps it.
  func bytes(_ page: Int) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: frames.directAddress(of: page)), count: Memory.pageSize)
  }

  // MARK: The fault path

  override func admit(_ page: Int, in domain: borrowing FaultDomain) -> AccessRefusal? {
    answer(page, isFault: true, in: domain)
  }
  override func prepareThread() { sealer.prepareThread() }
  override func isRefused(_ page: Int) -> Bool { unsafe refused.contains(page) || isLost(protection.domain.pointee) }
  override var mayHaveSealedBytes: Bool { hasEverSealed.load(ordering: .sequentiallyConsistent) }

  /// Whether the region failed, and there may be pages that are sealed, or half of whose bytes are: none of them opens any more.
  func isLost(_ domain: borrowing FaultDomain) -> Bool {
    mayHaveSealedBytes && domain.failure.load(ordering: .sequentiallyConsistent) != 0
  }

  override func isSealed(_ page: Int) -> Bool { sealed.contains(page) }
  override func noteUse(_ pages: Range<Int>) {
    used.insert(pages)
    idle.remove(pages)
  }

  // MARK: Who does not fault

  override func letIn(_ page: Int, isFault: Bool, in domain: borrowing FaultDomain) -> AccessRefusal? {
    answer(page, isFault: isFault, in: domain)
  }
  override func makeAccessible(_ pages: Range<Int>, insists: Bool) throws(PinError) { try open(pages, insists: insists) }
  override func requireOpenable(_ pages: Range<Int>) throws(PinError) { try openAll(pages) }
  override func error(_ refusal: AccessRefusal, _ page: Int) -> PinError { reason(refusal, page) }
  override func forget(_ pages: Range<Int>) throws(PinError) { try wipe(pages) }

  // MARK: Who copies

  override func noteMoment(_ store: CaptureStore) { noteSealed(store) }
  override func copyAsTheyAre(_ pages: Range<Int>, into target: UnsafeMutableRawPointer) {
    unsafe copyWithClaim(pages, into: target)
  }
  override func inherited(by child: Region) throws(PinError) -> CopyDecision? { try makePages(of: child) }
  override func handOver(to child: CopyDecision) {
    if let child = child as? SealedPages { giveRecords(to: child) }
  }
  override func begin(_ region: Region) throws(PinError) { try begin(region, first: nil) }
}

extension SealedPages: RegionAttachment {
  func bytesWillGo() {
    guard isOfThisProcess else { return }
    idling.withLock { $0 = true }
  }

  func regionWillUnmap() {
    guard isOfThisProcess else { return }
    isOver.store(true, ordering: .sequentiallyConsistent)
    participant.withLock { $0 = nil }
  }

  func regionDidUnmap() {
    // Snapshots keep the domain, and nothing keeps this object.
    unsafe protection.domain.pointee.seals.store(0, ordering: .sequentiallyConsistent)
  }
}
