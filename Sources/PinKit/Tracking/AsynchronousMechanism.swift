internal import Synchronization

/// Tracking inside the kernel: `WP_ASYNC` lets the first write to a protected page through and drops the page's mark, and
/// `PAGEMAP_SCAN` finds the pages without a mark and sets it again, in one step per page-table entry.
///
/// What counts as written differs by backing:
///
/// - Private anonymous memory: a present or swapped entry without the mark, unless it maps the kernel's zero page, which only a read puts
///   there. Entries that are not there have not been written, so untouched memory needs no marks and no page tables: arming costs
///   in proportion to what is populated. While tracked, the memory gets no new huge pages: one write would populate 512 pages.
/// - Shared memory and files: marks are set on absent entries too, as a read maps the page itself. The kernel may take a
///   written page out of the mapping (reclaim): its entry then is absent without a mark. A second scan finds those; without it, a page
///   that was written, written back and reclaimed between two collections would be lost.
@safe final class AsynchronousMechanism: TrackingMechanism, @unchecked Sendable {  // the session serializes all calls
  let kind = WriteTracking.Mechanism.asynchronous
  private let protection: RegionProtection
  private let backing: Backing
  private let addresses: AddressRange
  private let pageSize: Int
  private let pageCount: Int
  private let pageMap: PageMap
  private var hugePagesToRestore = false
  private var isSuspended = false

  init(region: Region, protection: RegionProtection) throws(PinError) {
    self.protection = protection
    backing = region.backing
    addresses = region.addresses
    pageSize = region.pageSize
    pageCount = region.pageCount
    pageMap = try PageMap()
  }

  /// A page without the mark that was not just read.
  private var written: PageMap.Query {
    backing.isPrivateAnonymous
      // Kernels differ in whether an absent entry reads as written; asking for one that is there works on all of them.
      ? PageMap.Query(
        required: [.written, .zeroFrame], inverted: .zeroFrame, anyOf: [.present, .swapped], returned: [.written, .swapped],
        writeProtects: true)
      // Asking for one category alone takes the kernel half the time; hugetlb memory is not scanned that way.
      : PageMap.Query(
        required: .written, returned: backing.isFileLike ? .written : [.written, .swapped], writeProtects: true)
  }

  /// What is away, or has no mark. Kernels differ in whether an absent entry is among these.
  private static let unmarked = PageMap.Query(anyOf: [.written, .swapped], returned: [.written, .swapped, .present])
  private static let unmarkedPresent = PageMap.Query(
    required: [.written, .present], returned: .written, writeProtects: true)

  /// An absent entry without the mark.
  private static let reclaimed = PageMap.Query(
    required: [.present, .swapped], inverted: [.present, .swapped], writeProtects: true)

  /// Nobody can act at a fault that the kernel resolves, so nobody asks for the moment when all is armed.
  func start(_ moment: ArmingMoment, armed: (borrowing FaultDomain) -> Void) throws(PinError) {
    try protection.begin(.asynchronous)
    do throws(PinError) {
      try keepPagesSmall()
      try arm()
    } catch {
      stop()
      throw error
    }
  }

  private func arm() throws(PinError) {
    try protection.untilDone(.writeTracking, .pages(0..<pageCount)) { domain, _ throws(PinError) in
      domain.table.discarded.drain { _ in }
      guard self.backing.isPrivateAnonymous else { return try Self.mark(self.addresses, domain) }
      let huge = try self.hugeRuns()
      for run in huge {
        guard try Self.mark(run, domain) else { return false }
      }
      if huge == [self.addresses] { return true }
      try self.pageMap.writeProtect(self.addresses, self.written)
      return try self.markLate(domain)
    }
  }

  /// Marks what the kernel has marked without telling while it was away: a look at all costs a tenth of marking them one by one.
  private func markLate(_ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    var away: [AddressRange] = []
    var isBack = false
    try pageMap.scan(addresses, Self.unmarked) {
      if $1.contains(.swapped) { away.append($0) } else if $1.contains(.present) { isBack = true }
    }
    // It came back meanwhile, without its mark, or was written since.
    if isBack { try pageMap.scan(addresses, Self.unmarkedPresent) { _, _ in } }
    return try Self.mark(away, domain)
  }

  /// Marks again what a scan has marked while it was not present. The mark of a writable page that was under migration does not outlast
  /// that: the page would be reported once more, although nobody wrote it. These pages are in the set at hand, which whoever
  /// collects has not got yet: what is written to them before this mark needs to be in no other (W5).
  private static func mark(_ away: [AddressRange], _ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    for run in away where try !mark(run, domain) { return false }
    return true
  }

  /// Where huge pages are mapped: marking those by `UFFDIO_WRITEPROTECT` flushes the TLB once, by `PAGEMAP_SCAN` once for each of
  /// them.
  private func hugeRuns() throws(PinError) -> [AddressRange] {
    guard backing.hugePages == .prefer || (backing.hugePages == .systemDefault && ProcessMaps.areHugePagesDefault)
    else { return [] }
    var runs: [AddressRange] = []
    try pageMap.scan(addresses, PageMap.Query(required: .huge, returned: .huge)) { run, _ in runs.append(run) }
    return runs
  }

  /// Marks all entries of a range, absent ones too. False if the kernel asked to try again.
  private static func mark(_ range: AddressRange, _ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    try domain.settle(domain.protect(range), "UFFDIO_WRITEPROTECT", range)
  }

  private func keepPagesSmall() throws(PinError) {
    guard let preference = backing.hugePages, preference != .never else { return }
    try Memory.advise(addresses, .noHugePages)
    hugePagesToRestore = preference == .prefer || ProcessMaps.areHugePagesDefault
  }

  func harvest(
    into dirty: inout DirtySet, _ event: InvalidationRange.Event, _ moment: ArmingMoment,
    armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) {
    try protection.throwIfFailed("collect")
    // However this ends: what a scan has reported it has marked, and no other scan reports it again (W5).
    var found = DirtySet(pageCount: pageCount)
    defer { if dirty.isEmpty { dirty = found } else { dirty.formUnion(found) } }
    var failure: PinError?
    // Who may write what is the kernel's to know here.
    try protection.untilDone(.writeTracking, .pages(0..<pageCount)) { domain, _ throws(PinError) in
      do throws(PinError) {
        if !isSuspended {
          var away: [AddressRange] = []
          var taken = DirtySet(pageCount: pageCount)
          defer { found.formUnion(taken) }
          try scan(written, into: &taken) { away.append($0) }
          // Tried again, it scans again: what has lost its mark by then is found, and marked for good.
          if try !Self.mark(away, domain) { return false }
        }
        if !isSuspended, backing.isFileLike {
          var absent = DirtySet(pageCount: pageCount)
          defer { found.formUnion(absent) }
          try scan(Self.reclaimed, into: &absent)
        }
      } catch {
        failure = error
      }
      var discarded: [Range<Int>] = []
      domain.table.discarded.drain { discarded.append($0) }
      if discarded.isEmpty { return true }
      found.formUnion(DirtySet(pageCount: pageCount, runs: discarded))
      do throws(PinError) { try markHoles(discarded, domain) } catch { failure = failure ?? error }
      return true
    }
    if let failure {
      // Without its userfaultfd the memory is no longer registered, and the kernel refuses to scan it.
      protection.repairDescriptors()
      try protection.throwIfFailed("collect")
      throw failure
    }
    // A registration that is gone would look like a clean region.
    try protection.throwIfFailed("collect")
  }

  /// A discarded huge page of hugetlb left an entry that no scan can mark, and a read would fill it without a mark.
  private func markHoles(_ discarded: [Range<Int>], _ domain: borrowing FaultDomain) throws(PinError) {
    guard pageSize > Memory.pageSize, !isSuspended else { return }
    for run in discarded where try !Self.mark(domain.addresses(of: run), domain) {
      // Somebody else's discard is in flight: once more with the next collection.
      domain.table.discarded.insert(run)
    }
  }

  private func scan(
    _ query: PageMap.Query, into dirty: inout DirtySet, noteAway: (AddressRange) -> Void = { _ in }
  ) throws(PinError) {
    let base = addresses.start
    let pageSize = UInt(pageSize)
    var found = consume dirty
    dirty = DirtySet(pageCount: pageCount)
    defer { dirty = found }
    try pageMap.scan(addresses, query) { range, categories in
      found.append(Int((range.start - base) / pageSize)..<Int((range.end - base) / pageSize))
      if categories.contains(.swapped) { noteAway(range) }
    }
  }

  func suspend() throws(PinError) { isSuspended = true }

  func resume(_ moment: ArmingMoment, armed: (borrowing FaultDomain) -> Void) throws(PinError) {
    isSuspended = false
    try arm()
  }

  func stop() {
    protection.end()
    if hugePagesToRestore { try? Memory.advise(addresses, .hugePages) }
    hugePagesToRestore = false
  }
}
