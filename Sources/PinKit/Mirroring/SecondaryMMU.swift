internal import Synchronization

/// A mirror of a range of pages with a page table of its own: what a device emulator, a vhost-user backend or an RDMA-like engine keeps, so
/// that it finds the bytes of a page without asking, and never needs to pin any (N12).
///
/// A translation is taken from the primary MMU when it is first needed, for writing by a write fault (N1), and is given up when
/// PinKit says that the page changes. Until then using it costs no system call and no lock.
///
/// For `.pool` memory the bytes are the pool's own mapping of the frame, which bypasses the protection of the region; for other
/// memory they are the region's.
@safe public final class SecondaryMMU: Sendable {
  public let region: Region
  public let pages: Range<Int>
  /// In bytes.
  public let pageSize: Int
  public typealias Access = MappingAccess
  private let mirror: TranslationTable
  private let interval: IntervalSubscription
  private let protection: RegionProtection

  /// - Throws: ``PinError``, as ``Region/subscribe(_:to:file:line:)``.
  public init(_ region: Region, pages: Range<Int>? = nil) throws(PinError) {
    let pages = try region.subscribable(pages)
    let mirror = try TranslationTable(pages, region)
    self.region = region
    self.pages = pages
    pageSize = region.pageSize
    self.mirror = mirror
    protection = try region.protection()
    interval = try IntervalSubscription(region, pages: pages, young: mirror) { mirror.invalidate($0) }
  }

  /// Calls `body` with the bytes of a page, which are valid until it returns: an invalidation waits for it. So be short, keep no pointer, do
  /// nothing that waits, and touch the region in no other way inside.
  ///
  /// Blocks while the page changes.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.accessDenied`, `.unmapped`, `.stopped` after ``close()``, `.wouldDeadlock` from a callback, or
  ///   where the page is not translated yet and the thread is inside `body` of a mirror or mapping of this region already; `.limitReached`
  ///   where eight of them are nested or a thousand threads use some; `.timedOut`. And what `body` throws.
  @inlinable public func withBytes<Result>(
    of page: Int, for access: Access, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
  ) throws -> Result {
    while true {
      let address = enter(page, access)
      if address != 0 {
        defer { leave() }
        return try unsafe body(
          UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: address), count: pageSize))
      }
      try translate(page, for: access)
    }
  }

  /// Enters the mirror's critical section and finds the page there; 0, and outside, if it is not translated.
  @usableFromInline func enter(_ page: Int, _ access: Access) -> UInt {
    guard pages.contains(page), CriticalSection.enter(mirror.identity, of: region.id) else { return 0 }
    if let address = mirror.find(page, access == .writing) { return address }
    CriticalSection.leave()
    return 0
  }
  @usableFromInline func leave() { CriticalSection.leave() }

  /// Sees to it that the mirror has a translation of `page`, unless something changes it again right away: takes a fault where the primary
  /// MMU has none (N1), and starts over where the page changes meanwhile (N11).
  ///
  /// - Throws: As ``withBytes(of:for:_:)``.
  public func translate(_ page: Int, for access: Access) throws(PinError) {
    guard pages.contains(page) else {
      throw PinError(
        .outOfBounds, operation: "translate page \(page)", range: region.addresses,
        advice: "The mirror is of pages \(pages).")
    }
    try CriticalSection.requireRoom("translate", region.addresses)
    try region.requireOutsideFaultPath("translate")
    try region.enter("translate")
    defer { region.leave() }
    try InvalidationRange.withOwner(self) { () throws(PinError) in
      while true {
        let sequence = try interval.readBegin()
        TestHooks.reach(.translating, page: page)
        let (address, isWritable) = try region.translate(page, forWriting: access == .writing, by: protection)
        TestHooks.reach(.translated, page: page)
        if mirror.install(
          page, address, isWritable: isWritable && access == .writing, unless: { interval.readRetry(sequence) })
        {
          return
        }
      }
    }
  }

  /// Whether the mirror has a translation of the page now.
  public func isTranslated(_ page: Int, for access: Access = .reading) -> Bool {
    pages.contains(page) && mirror.find(page, access == .writing, isUse: false) != nil
  }

  /// Gives all translations up, and takes none again. Blocks while callbacks run. Dropping the last reference does the same.
  public func close() {
    // In this order: as long as there is a translation, changes have to be told.
    interval.refuseTranslations()
    // A thread that a child of fork() does not have may hold the lock.
    if region.space.isOfThisProcess { mirror.clear() }
    interval.remove()
  }
}

/// The page table of a mirror.
///
/// Entries are cleared by invalidations and filled under a spin lock that those take too, after asking whether one came (N11).
@safe final class TranslationTable: YoungPages, @unchecked Sendable {  // entries are atomics
  private static let writable: UInt64 = 1
  /// Looked at without the lock: a use that is seen late counts for the next look.
  private static let young: UInt64 = 2
  private static let dirty: UInt64 = 4
  private static let flags: UInt64 = 4095

  private let memory: Mapping
  private let entries: UnsafeMutablePointer<Atomic<UInt64>>
  private let pages: Range<Int>
  private let lock = SpinLock()
  private let patience = ReaderPatience()
  private let table: PageTable

  init(_ pages: Range<Int>, _ region: Region) throws(PinError) {
    memory = try Mapping(count: (pages.count * 8 + 4095) & ~4095)
    // A child of fork() has no translations.
    try Memory.advise(memory.range, .wipeOnFork)
    try? Memory.advise(memory.range, .dontDump)
    unsafe entries = UnsafeMutableRawPointer(bitPattern: memory.range.start)!.bindMemory(
      to: Atomic<UInt64>.self, capacity: pages.count)
    self.pages = pages
    table = region.table
  }

  var identity: UInt { memory.range.start }

  /// Where the bytes are; notes that they are used.
  @inline(__always) func find(_ page: Int, _ isWrite: Bool, isUse: Bool = true) -> UInt? {
    let entry = unsafe entries + (page - pages.lowerBound)
    let value = unsafe entry.pointee.load(ordering: .acquiring)
    if value == 0 || (isWrite && value & Self.writable == 0) { return nil }
    let marks = isWrite ? Self.young | Self.dirty : Self.young
    if isUse, value & marks != marks {
      // An invalidation in between has not seen the mark, and finds this thread inside: it has to leave.
      let (isMarked, _) = unsafe entry.pointee.compareExchange(
        expected: value, desired: value | marks, ordering: .acquiringAndReleasing)
      if !isMarked { return nil }
    }
    return UInt(value & ~Self.flags)
  }

  /// False if the translation is stale already.
  func install(_ page: Int, _ address: UInt, isWritable: Bool, unless isStale: () -> Bool) -> Bool {
    Kernel.withSignalsBlocked {
      lock.withLock {
        if isStale() { return false }
        let entry = unsafe entries + (page - pages.lowerBound)
        let value = UInt64(address) | (isWritable ? Self.writable : 0)
        // One that is as good may have marks by now. A reader's mark that comes after this look is lost with an entry for reading alone: it says
        // of a use, and of no write.
        let known = unsafe entry.pointee.load(ordering: .relaxed)
        if known & ~(Self.young | Self.dirty) == value || known & Self.writable != 0 { return true }
        unsafe entry.pointee.store(value, ordering: .releasing)
        return true
      }
    }
  }

  /// Takes the translations of a range away; what was written through them is dirty (N2).
  func invalidate(_ range: InvalidationRange) -> InvalidationResponse {
    if CriticalSection.isInside(identity) { return .wouldBlock }
    Kernel.withSignalsBlocked {
      lock.withLock { clear(range.pages.clamped(to: pages)) { try? range.markDirty($0..<$0 + 1) } }
    }
    return patience.waitUntilEmpty(identity, for: range) ? .done : .wouldBlock
  }

  private func clear(_ range: Range<Int>, _ wasWritten: (Int) -> Void) {
    for page in range {
      let entry = unsafe entries + (page - pages.lowerBound)
      if unsafe entry.pointee.load(ordering: .relaxed) == 0 { continue }
      if unsafe entry.pointee.exchange(0, ordering: .sequentiallyConsistent) & Self.dirty != 0 { wasWritten(page) }
    }
  }

  func clear() {
    Kernel.withSignalsBlocked { lock.withLock { clear(pages) { table.discarded.insertVisibly($0) } } }
    _ = CriticalSection.waitUntilEmpty(identity, patience: .max)
  }

  func testYoung(_ range: Range<Int>) -> Bool {
    for page in range.clamped(to: pages)
    where unsafe entries[page - pages.lowerBound].load(ordering: .relaxed) & Self.young != 0 {
      return true
    }
    return false
  }

  func clearYoung(_ range: Range<Int>) -> Bool {
    var wasYoung = false
    for page in range.clamped(to: pages) {
      let entry = unsafe entries + (page - pages.lowerBound)
      if unsafe entry.pointee.load(ordering: .relaxed) & Self.young == 0 { continue }
      unsafe entry.pointee.bitwiseAnd(~Self.young, ordering: .relaxed)
      wasYoung = true
    }
    return wasYoung
  }
}

extension ReaderPatience {
  /// Waits for those who are inside `object`, as long as `range` allows.
  func waitUntilEmpty(_ object: UInt, for range: InvalidationRange) -> Bool {
    waitUntilEmpty(object, isBlockable: range.isBlockable, isLast: range.event == .unmap)
  }
}
