internal import Synchronization
internal import SystemPackage

/// The bytes that were kept for snapshots while one of them was the newest of its region.
///
/// Page `p` is kept at offset `p * pageSize` of a mapping as long as the region, without reservation: pages that were not kept cost
/// nothing. A page that holds zeros only is put on record and not copied.
///
/// The order of one capture, on a page that is claimed and write-protected:
///
///     room within the limit → memory → copy → the region is still watched → `captured` → (the caller) the page is opened
///
/// So whoever sees a byte that was written after the snapshot, and then looks at `captured`, finds it set.
///
/// A snapshot whose page is not in its own store finds it in the store of the first newer one that has it: a page that nobody wrote
/// in between was the same at both moments. What is in none of them is still in the region.
@safe final class CaptureStore: OwedBytes, @unchecked Sendable {  // all atomic, but the bytes: see `copyIn`
  let pageCount: Int
  let pageSize: Int
  private let memory: CaptureMemory
  private let recycler: CaptureRecycler
  let base: UnsafeMutableRawPointer
  /// What is owed no more.
  let captured: PageMarks
  /// Of those, the pages that have a copy; the others held zeros. Set before `captured`.
  let filled: PageMarks
  /// Of those, the pages whose copy is in the second mapping, which has huge pages. Set before `captured`.
  let isDense: PageMarks
  /// The pages that had no bytes, or have lost them, when they were to be kept or read: of adopted memory only. Whatever else is on record
  /// of such a page came later.
  let unreadable: PageMarks
  let hasUnreadable = Atomic<Bool>(false)
  /// Of those, the guard pages at the moment of the snapshot.
  let vacant = Mutex<DirtySet?>(nil)
  /// From the first mapping to the second, in bytes.
  let denseOffset: Int
  let progress: SnapshotProgress
  /// Alive as long as there are faults in it, which is when it is asked.
  private unowned(unsafe) let region: Region
  /// Who goes by an older one keeps, or does not keep, what it would have before the change.
  private let limit = Atomic<Int>(0)
  private let givesUp = Atomic<Bool>(true)
  /// Zero, or why the snapshots that need this store are given up (`Loss.rawValue << 32 | errno`).
  private let loss = Atomic<UInt64>(0)
  /// What was sealed when its snapshot was taken; `nil` where no page ever is.
  let moment = Mutex<SealMoment?>(nil)
  /// The store of the snapshot after this one, retained; set once, while the wrprotect lock is held exclusively.
  private let next = Atomic<UInt>(0)

  /// Touches no memory. Nothing is kept before ``setLimit(_:givesUp:)``.
  init(region: Region, recycler: CaptureRecycler) throws(PinError) {
    unsafe self.region = region
    pageCount = region.pageCount
    pageSize = region.pageSize
    progress = SnapshotProgress(region.backing.pageClass, pageCount: region.pageCount)
    memory = try recycler.take(for: region)
    self.recycler = recycler
    denseOffset = memory.denseOffset
    unsafe base = UnsafeMutableRawPointer(bitPattern: memory.start)!
    captured = unsafe PageMarks(memory: UnsafeMutableRawPointer(bitPattern: memory.marks(0))!, pageCount: pageCount)
    filled = unsafe PageMarks(memory: UnsafeMutableRawPointer(bitPattern: memory.marks(1))!, pageCount: pageCount)
    isDense = unsafe PageMarks(memory: UnsafeMutableRawPointer(bitPattern: memory.marks(2))!, pageCount: pageCount)
    unreadable = unsafe PageMarks(memory: UnsafeMutableRawPointer(bitPattern: memory.marks(3))!, pageCount: pageCount)
  }

  deinit {
    CaptureShares.end(self)
    recycler.put(memory)
    // One after the other: a long chain would otherwise be let go of recursively, as deep as it is long.
    var following = takeSuccessor()
    while isKnownUniquelyReferenced(&following) { following = following?.takeSuccessor() }
  }

  // MARK: The chain

  func setSuccessor(_ store: CaptureStore) {
    let address = Uncounted(store).address
    let before = next.load(ordering: .relaxed)
    // The kernel had to be asked again.
    if before == address { return }
    precondition(before == 0, "a snapshot has one that follows it")
    _ = unsafe Unmanaged.passRetained(store)
    next.store(address, ordering: .releasing)
    progress.isNewest.store(false, ordering: .relaxed)
  }

  private func takeSuccessor() -> CaptureStore? {
    let raw = next.exchange(0, ordering: .acquiringAndReleasing)
    return unsafe UnsafeRawPointer(bitPattern: raw).map { unsafe Unmanaged<CaptureStore>.fromOpaque($0).takeRetainedValue() }
  }

  /// The first that is wanted of this store and all newer ones. They stay as long as this one does, and whoever holds it need not count that it
  /// holds them.
  @inline(__always) func firstInChain(where isWanted: (borrowing CaptureStore) -> Bool) -> Uncounted<CaptureStore>? {
    var store = Uncounted(self)
    while true {
      let (isFound, following) = store.with { isWanted($0) ? (true, 0) : (false, $0.next.load(ordering: .acquiring)) }
      if isFound { return store }
      guard let newer = Uncounted<CaptureStore>(address: following) else { return nil }
      store = newer
    }
  }

  /// The store that says what a page was at the moment of this one's snapshot; `nil` where none was asked yet.
  @inline(__always) func holder(of page: Int) -> Uncounted<CaptureStore>? { firstInChain { $0.answers(for: page) } }

  /// This store and all newer ones.
  var chain: [CaptureStore] {
    var chain: [CaptureStore] = []
    _ = firstInChain { store in
      chain.append(copy store)
      return false
    }
    return chain
  }

  /// Why the snapshots that need this store, or a newer one, were given up.
  func failureOfChain(_ range: AddressRange) -> PinError? {
    firstInChain { $0.isLost }?.with { $0.failure(range) }
  }

  // MARK: Limits

  /// How much memory the copies take. What is reckoned from it, limits and shares, is off by what faults keep or give back at that moment.
  var bytes: Int { progress.bytes.load(ordering: .relaxed) }

  func setLimit(_ bytes: Int, givesUp: Bool) {
    // Whoever fails against the lower limit finds the policy that goes with it; in between nobody is given up.
    if !givesUp { self.givesUp.store(false, ordering: .sequentiallyConsistent) }
    limit.store(bytes, ordering: .sequentiallyConsistent)
    if givesUp { self.givesUp.store(true, ordering: .sequentiallyConsistent) }
  }

  func reserve(_ bytes: Int) -> Bool {
    // In one step: what finds no room takes none from anybody who would.
    var used = progress.bytes.load(ordering: .relaxed)
    while used + bytes <= limit.load(ordering: .relaxed) {
      let taken = progress.bytes.compareExchange(expected: used, desired: used + bytes, ordering: .relaxed)
      if taken.exchanged { return true }
      used = taken.original
    }
    return false
  }

  /// Whether ``reserve(_:)`` would find room now. A moment later it may be otherwise: who is held tries again, and who gives up had none before.
  func hasRoom(_ bytes: Int) -> Bool { progress.bytes.load(ordering: .relaxed) + bytes <= limit.load(ordering: .relaxed) }

  /// Holds the writer, or gives up: what the snapshot asked for, but nobody is held who is waited for with unmapping the region. Who is held
  /// tries again, and finds what has changed since.
  func withoutRoom(for bytes: Int) -> Verdict {
    let isClosing = unsafe region.gate.isClosed
    // The limit goes with the policy: it may be another one since there was no room.
    if !isClosing, !givesUp.load(ordering: .sequentiallyConsistent) || hasRoom(bytes) { return .held }
    lose(isClosing ? .unmapped : .limit, errno: 0)
    return .kept
  }

  // MARK: Keeping

  override func keep(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> Verdict {
    keep(pages, in: domain, isAhead: false)
  }

  override func keepAhead(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> Verdict {
    keep(pages, in: domain, isAhead: true)
  }

  func keep(_ pages: Range<Int>, in domain: borrowing FaultDomain, isAhead: Bool) -> Verdict {
    if isLost { return .kept }
    var page = captured.first(in: pages, isSet: false)
    if page == pages.upperBound { return .kept }
    domain.keepsBegun.add(1, ordering: .sequentiallyConsistent)
    defer { domain.keepsEnded.add(1, ordering: .sequentiallyConsistent) }
    while page < pages.upperBound {
      let end = captured.first(in: page..<pages.upperBound, isSet: true)
      let verdict = keepOwed(page..<end, in: domain, isAhead: isAhead)
      if verdict == .held || isLost { return verdict }
      page = captured.first(in: end..<pages.upperBound, isSet: false)
    }
    return .kept
  }

  override func readable(around page: Int, in pages: Range<Int>) -> Range<Int> {
    guard hasUnreadable.load(ordering: .acquiring) else { return pages }
    var first = page
    while first > pages.lowerBound, !unreadable.contains(first - 1) { first -= 1 }
    return first..<unreadable.first(in: page + 1..<pages.upperBound, isSet: true)
  }

  private func keepOwed(_ pages: Range<Int>, in domain: borrowing FaultDomain, isAhead: Bool) -> Verdict {
    if domain.isForeign { return keepChecked(pages, in: domain, isAhead: isAhead) }
    var page = pages.lowerBound
    while page < pages.upperBound {
      var end = page
      while end < pages.upperBound, unsafe !Memory.isZero(source(end, domain), count: pageSize) { end += 1 }
      guard end > page else {
        page += 1
        continue
      }
      if !reserve((end - page) * pageSize) {
        // What was copied before is worth keeping: the next try needs less room.
        record(pages.lowerBound..<page, in: domain)
        return isAhead ? .held : withoutRoom(for: (end - page) * pageSize)
      }
      if let errno = copyIn(page..<end, domain) {
        if isAhead {
          progress.bytes.subtract((end - page) * pageSize, ordering: .relaxed)
          record(pages.lowerBound..<page, in: domain)
          return .held
        }
        lose(.memory, errno: errno)
        return .kept
      }
      page = end
    }
    record(pages, in: domain)
    return .kept
  }

  /// Only the one thread that has claimed a page writes its copy, and nobody reads the copy before `captured` says so. Returns an
  /// errno if there is no memory.
  private func copyIn(_ pages: Range<Int>, _ domain: borrowing FaultDomain) -> CInt? {
    let isDense = isDenseRun(pages)
    let offset = isDense ? denseOffset : 0
    let range = addresses(of: pages)
    let result = Memory.populate(AddressRange(start: range.start + UInt(offset), count: range.count))
    if result < 0 { return -result }
    TestHooks.reach(.capturing, page: pages.lowerBound)
    for page in pages { unsafe Memory.copy(source(page, domain), to: base + offset + page * pageSize, count: pageSize) }
    if isDense { self.isDense.insert(pages) }
    filled.insert(pages)
    return nil
  }

  func record(_ pages: Range<Int>, in domain: borrowing FaultDomain) {
    if pages.isEmpty { return }
    // A region that failed loses its protection soon after it says so: bytes that were copied since may be newer.
    atomicMemoryFence(ordering: .acquiring)
    if domain.failure.load(ordering: .acquiring) != 0 { return lose(.region, errno: 0) }
    noteCaptured(pages)
    domain.counters.add(.capturedPages, pages.count)
  }

  @inline(__always) private func source(_ page: Int, _ domain: borrowing FaultDomain) -> UnsafeRawPointer {
    unsafe UnsafeRawPointer(bitPattern: domain.readableAddress(of: page))!
  }

  /// A fault that takes so many pages along has found its block written densely: most of it will be kept.
  private static let denseRun = 16

  /// In bytes: both mappings in full. A huge page is taken as a whole, whatever of it is used; so under a smaller limit there are none, and
  /// the limit means what it says (K7).
  private var leastForDenseRuns: Int { 2 * pageCount * pageSize }

  /// Whether the copies of `pages` go to the mapping with huge pages.
  @inline(__always) func isDenseRun(_ pages: Range<Int>) -> Bool {
    pages.count >= Self.denseRun && pageSize == Memory.pageSize && limit.load(ordering: .relaxed) >= leastForDenseRuns
  }

  /// How much memory the copies can take under a limit, in bytes.
  func most(under limit: Int) -> Int { limit >= leastForDenseRuns ? leastForDenseRuns : min(limit, pageCount * pageSize) }

  func addresses(of pages: Range<Int>) -> AddressRange {
    AddressRange(start: memory.start + UInt(pages.lowerBound * pageSize), count: pages.count * pageSize)
  }

  // MARK: Keeping outside of faults

  /// Puts pages on record that are known to hold zeros, and to have held them since this store became the newest.
  func keepZeros(_ pages: Range<Int>) { if !isLost { noteCaptured(pages) } }

  private func noteCaptured(_ pages: Range<Int>) {
    progress.pages.add(captured.insertCounting(pages), ordering: .relaxed)
  }

  /// Keeps a page that the program may not read at the moment; as ``keep(_:in:)`` otherwise.
  func keep(unreadable page: Int, _ memory: ProcessMemory?, in domain: borrowing FaultDomain) -> Verdict {
    if isLost || captured.contains(page) { return .kept }
    domain.keepsBegun.add(1, ordering: .sequentiallyConsistent)
    defer { domain.keepsEnded.add(1, ordering: .sequentiallyConsistent) }
    guard let memory else {
      lose(.memory, errno: Errno.permissionDenied.rawValue)
      return .kept
    }
    guard reserve(pageSize) else { return withoutRoom(for: pageSize) }
    var result = Memory.populate(addresses(of: page..<page + 1))
    let address = domain.addresses(of: page..<page + 1).start
    if result == 0 {
      result = unsafe memory.read(address, into: base + page * pageSize, count: pageSize)
      if result < 0, domain.isForeign, memory.meansNoBytes(result) {
        progress.bytes.subtract(pageSize, ordering: .relaxed)
        noteUnreadable(page..<page + 1)
        record(page..<page + 1, in: domain)
        return .kept
      }
    }
    if result < 0 {
      lose(.memory, errno: -result)
    } else {
      filled.insert(page..<page + 1)
      record(page..<page + 1, in: domain)
    }
    return .kept
  }

  // MARK: Reading and releasing

  /// Copies pages that are captured, and not without bytes.
  func copyOut(_ pages: Range<Int>, into target: UnsafeMutableRawPointer) {
    for page in pages {
      let place = unsafe target + (page - pages.lowerBound) * pageSize
      guard filled.contains(page) else {
        // The memory may hold the copies of an earlier store.
        unsafe place.initializeMemory(as: UInt8.self, repeating: 0, count: pageSize)
        continue
      }
      let offset = (isDense.contains(page) ? denseOffset : 0) + page * pageSize
      unsafe place.copyMemory(from: base + offset, byteCount: pageSize)
    }
  }

  /// Owes these pages to nobody any more, and gives their memory back. They are claimed, or this store is not the newest.
  func release(_ pages: Range<Int>) {
    let copies = filled.pages(in: pages)
    noteCaptured(pages)
    filled.remove(pages)
    for run in copies.runs {
      let range = addresses(of: run)
      do throws(PinError) {
        try Memory.advise(range, .dontNeed)
        if pageSize == Memory.pageSize {
          try Memory.advise(AddressRange(start: range.start + UInt(denseOffset), count: range.count), .dontNeed)
        }
      } catch {}
      progress.bytes.subtract(run.count * pageSize, ordering: .relaxed)
    }
  }

  // MARK: Giving up

  enum Loss: UInt32, Sendable {
    case limit = 1
    case memory
    case removed
    case unmapped
    case region
  }

  var isLost: Bool { loss.load(ordering: .acquiring) != 0 }

  func isLost(to reason: Loss) -> Bool { UInt32(loss.load(ordering: .acquiring) >> 32) == reason.rawValue }

  /// The first reason stays. Async-signal-safe.
  func lose(_ reason: Loss, errno: CInt) {
    let value = UInt64(reason.rawValue) << 32 | UInt64(UInt32(bitPattern: errno))
    _ = loss.compareExchange(expected: 0, desired: value, ordering: .sequentiallyConsistent)
  }

  override func lose(_ pages: Range<Int>, isQuiet: () -> Bool) {
    TestHooks.reach(.losing, page: pages.lowerBound)
    if captured.first(in: pages, isSet: false) == pages.upperBound {
      atomicMemoryFence(ordering: .sequentiallyConsistent)
      if isQuiet() { return }
    }
    lose(.removed, errno: 0)
  }

  /// Why the snapshots that need this store are given up.
  func failure(_ range: AddressRange) -> PinError? {
    let value = loss.load(ordering: .acquiring)
    guard value != 0, let reason = Loss(rawValue: UInt32(value >> 32)) else { return nil }
    let errno = CInt(truncatingIfNeeded: value & 0xffff_ffff)
    return PinError(
      .snapshotLost, operation: "snapshot", errno: errno == 0 ? nil : Errno(rawValue: errno), range: range,
      advice: reason.advice)
  }
}

extension CaptureStore.Loss {
  var advice: String {
    switch self {
    case .limit:
      "The capture limit was reached, and the snapshot was to be given up then. Set a higher captureLimit (the default is half of what the memory cgroup leaves), or read faster."
    case .memory: "There was no memory for a page that was about to change. Set a capture limit, or read faster."
    case .removed:
      "Pages were dropped behind PinKit's back before their bytes had been kept. Use Region.discard(_:) instead of madvise(2)."
    case .unmapped:
      "The region was unmapped, and what the snapshot still needed did not fit in the capture limit. Close snapshots first."
    case .region: "The region can no longer be watched, and not all of its bytes had been kept."
    }
  }
}
