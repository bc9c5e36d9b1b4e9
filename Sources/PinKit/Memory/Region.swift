internal import Logging
internal import Synchronization

/// A range of managed pages.
///
/// Pages are counted from 0. The bytes are ordinary memory: load and store through ``withUnsafeMutableBytes(_:)`` at full speed.
/// All calls may be made from any thread, but not from signal handlers, which may touch the bytes only. After ``unmap(whilePinned:)`` every call
/// throws `.unmapped`; a pointer that was kept beyond its closure points at nothing then, and using it is the program's own error.
public final class Region: Sendable {
  /// The space it belongs to.
  public let space: AddressSpace
  public let backing: Backing
  /// The bytes of the region.
  public let addresses: AddressRange
  /// In bytes; the huge page's for hugetlb memory.
  public let pageSize: Int
  public var pageCount: Int { addresses.count / pageSize }

  /// Unique in the process.
  let id: UInt64
  /// Whether the program mapped the memory itself: other code may guard or truncate its pages (K6).
  let isAdopted: Bool
  /// Whether its pages come from a store.
  let isStored: Bool
  let gate: AccessGate
  let table: PageTable
  let attachments = Attachments()
  /// Whether pages of it may be sealed. Set before the first is: who does not see it yet has copied no sealed bytes, and meets a seal at the page
  /// itself, with the lock, by its reference, or in a fault.
  let hasSeals = Atomic<Bool>(false)
  let pinGate = PinGate()
  private let forkGeneration = Kernel.forkGeneration
  /// False in a child of `fork()`; as the space says, which takes longer to ask.
  @inline(__always) var isOfThisProcess: Bool { forkGeneration == Kernel.forkGeneration }
  /// The protection that pins look at without a lock, once there was one: a retained object, and its fault domain.
  let pinProtection = Atomic<UInt>(0)
  let pinDomain = Atomic<UInt>(0)
  /// `load`, `store` and `copy` hold it shared, `protect(_:to:)` exclusively: a right that was checked lasts for the access.
  let checkedAccesses = FutexLock()
  /// Held while the way that pages are protected changes as a whole.
  let layout = LayoutLock()
  /// Discarding holds it shared, collecting exclusively; outside the wrprotect lock. A page that is dropped loses its protection:
  /// a write to it before the drop is on record would be in the next collection instead of this one.
  let discarding = FutexLock()
  /// Which frames its pages have; of `.pool` regions only.
  let frames: RegionFrames?
  let uncountedFrames: Uncounted<RegionFrames>?
  /// Held shared by a discard of a region that had no protection when it began. Whoever must know of every discard attaches a
  /// protection, which later ones find, and then takes it exclusively once.
  let unwatchedDiscards = FutexLock()
  /// What its pins use, and what they keep when it goes.
  let memory: RegionMemory

  private static let lastID = Atomic<UInt64>(0)
  /// Of a region, or whatever else has a gate.
  static func nextID() -> UInt64 { lastID.add(1, ordering: .relaxed).newValue }

  init(
    space: AddressSpace, backing: Backing, addresses: AddressRange, pageSize: Int, owned: consuming Mapping?,
    base: PoolExtent? = nil
  ) throws(PinError) {
    let id = Self.nextID()
    memory = try RegionMemory(
      space: space, id: id, addresses: addresses, pageSize: pageSize, owned: owned, base: base)
    table = memory.table
    frames = memory.frames
    uncountedFrames = memory.frames.map { Uncounted($0) }
    self.space = space
    self.backing = backing
    self.addresses = addresses
    self.pageSize = pageSize
    self.id = id
    gate = AccessGate(id: id)
    isStored = backing.stored != nil
    if case .adopted = backing.kind { isAdopted = true } else { isAdopted = false }
    try ManagedRanges.claim(self)
    do throws(PinError) { try space.enroll(self) } catch {
      ManagedRanges.release(id: id)
      space.withdraw(id)
      throw error
    }
  }

  deinit {
    // Nobody is inside: accesses hold the region.
    if isOfThisProcess ? gate.close() : gate.closeInChild() {
      do throws(PinError) { if isOfThisProcess { try supply?.finish(isLast: true) } } catch {
        space.configuration.logger.critical(
          "a region over a store was dropped, and what had changed in it could not be written: \(error)")
      }
      // Pins that outlive the region keep its frames. Where there are none, they keep its bytes.
      tearDown(keepsBytes: frames == nil && isOfThisProcess && memory.isPinned)
    }
    // In a child of fork() nobody has a pin.
    if isOfThisProcess { PinnedOrphans.take(memory) } else { memory.unmap() }
    releasePinProtection()
    checkedAccesses.deallocate()
    discarding.deallocate()
    unwatchedDiscards.deallocate()
  }

  /// Gives the memory up: owned memory is unmapped, adopted memory is left to the program, unprotected.
  ///
  /// New accesses throw `.unmapped` at once. Accesses that are inside `withUnsafeMutableBytes`, `load`, `store` or `copy` go on, their
  /// faults are served, and the call blocks until they have ended. Threads that fault through pointers of their own are woken and
  /// try again: until the memory is gone their access succeeds, after that it is SIGSEGV, as with munmap(2).
  ///
  /// What has changed in a region over a store is written back first, and made durable.
  ///
  /// - Parameter whilePinned: What to do if pages are pinned (P4, P7): to fail, unless given.
  /// - Throws: ``PinError``: `.pinned`, naming the pages; `.unmapped` if it was unmapped before, `.wouldDeadlock` from inside an access to
  ///   this region or from a fault callback, `.unsupported` for `.leaveFrames` of memory that is not of a pool. Nothing has changed then.
  ///   What the store says if it cannot write: the region stays as it is.
  public func unmap(whilePinned: PinnedPages = .fail) throws(PinError) {
    try requireOutside("unmap")
    guard space.isOfThisProcess else { throw .notInherited("unmap") }
    try requireFrames(whilePinned, "unmap")
    if gate.isClosed { throw PinError(.unmapped, operation: "unmap", range: addresses) }
    // While it can still be refused without harm.
    try flushSupply()
    // For good, if it goes on: nobody pins a region that goes.
    try beginDrop(0..<pageCount, "unmap", whilePinned: whilePinned)
    guard gate.close() else {
      pinGate.endDrop()
      throw PinError(.unmapped, operation: "unmap", range: addresses)
    }
    do throws(PinError) { try supply?.finish(isLast: true) } catch {
      gate.reopen()
      pinGate.endDrop()
      throw error
    }
    memory.isLeftToPins.store(true, ordering: .sequentiallyConsistent)
    tearDown(keepsBytes: false)
  }

  /// Writes what has changed to the store, if there is one.
  func flushSupply() throws(PinError) {
    guard let supply, gate.enter() else { return }
    defer { gate.leave() }
    try supply.finish(isLast: false)
  }

  /// What brings its pages in, if that is a store.
  var supply: (any PageSupply)? {
    backing.stored == nil ? nil : attachments.first(as: (any PageSupply).self)
  }

  func requireFrames(_ whilePinned: PinnedPages, _ operation: String) throws(PinError) {
    guard whilePinned == .leaveFrames, frames == nil else { return }
    throw PinError(
      .unsupported, operation: operation, range: addresses,
      advice: "The backing is \(backing), whose pages have no frames that outlive them: unpin first, or use .wait.")
  }

  func requireOutside(
    _ operation: StaticString, file: StaticString = #fileID, line: UInt = #line
  ) throws(PinError) {
    if gate.isMine {
      throw PinError(
        .wouldDeadlock, operation: "\(operation)", range: addresses,
        advice: "The calling thread is inside an access to this region; leave withUnsafeMutableBytes first.")
    }
    try requireOutsideFaultPath(operation, file: file, line: line)
  }

  func requireOutsideFaultPath(
    _ operation: StaticString, file: StaticString = #fileID, line: UInt = #line
  ) throws(PinError) {
    try LockOrder.refuseInCallback(operation, addresses, file: file, line: line)
    try requireOutsideMirrors("\(operation)")
  }

  /// Whatever changes the region waits for those who are inside `withBytes` of a mirror or mapping.
  @inline(__always) func requireOutsideMirrors(_ operation: @autoclosure () -> String) throws(PinError) {
    if CriticalSection.isInside(region: id) {
      throw PinError(
        .wouldDeadlock, operation: operation(), range: addresses,
        advice:
          "The thread is inside withBytes of a mirror or mapping of this region, which the call may wait for: leave it first."
      )
    }
  }

  private func tearDown(keepsBytes: Bool) {
    // A child of fork() has neither the threads of these nor their locks, which may have been held at that moment.
    let attached = isOfThisProcess ? attachments.all(as: (any RegionAttachment).self) : []
    for attachment in attached { attachment.regionWillGo() }
    for attachment in attached { attachment.bytesWillGo() }
    for attachment in attached { attachment.regionWillUnmap() }
    // As it was when it was adopted: readable and writable.
    if isAdopted, table.hasDeniedPages { _ = Memory.protect(addresses, .readWrite) }
    if !keepsBytes { memory.unmap() }
    for attachment in attached { attachment.regionDidUnmap() }
    // Nothing maps them any more.
    frames?.release()
    attachments.removeAll()
    space.withdraw(id)
  }

  private func releasePinProtection() {
    let raw = pinProtection.load(ordering: .acquiring)
    if raw != 0 { unsafe Unmanaged<AnyObject>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!).release() }
  }

  // MARK: Pages and addresses

  /// The bytes of `pages`.
  ///
  /// - Throws: ``PinError`` `.outOfBounds`.
  public func addresses(of pages: Range<Int>) throws(PinError) -> AddressRange {
    guard pages.lowerBound >= 0, pages.upperBound <= pageCount else {
      throw PinError(
        .outOfBounds, operation: "pages \(pages)", range: addresses, advice: "The region has \(pageCount) pages.")
    }
    return addressesUnchecked(of: pages)
  }

  /// Throws `.outOfBounds` for a page that the region does not have, whatever the number is.
  @inline(__always) func requirePage(_ page: Int) throws(PinError) {
    guard page >= 0, page < table.pageCount else {
      throw PinError(
        .outOfBounds, operation: "page \(page)", range: addresses, advice: "The region has \(pageCount) pages.")
    }
  }

  @inline(__always) func addressesUnchecked(of pages: Range<Int>) -> AddressRange { memory.addressesUnchecked(of: pages) }

  /// The page that holds `address`, or `nil` outside the region.
  public func page(at address: UInt) -> Int? {
    addresses.contains(address) ? Int(address - addresses.start) / pageSize : nil
  }

  /// The pages that `bytes` touches, clamped to the region.
  func pages(touching bytes: AddressRange) -> Range<Int> {
    let inside = bytes.clamped(to: addresses)
    guard !inside.isEmpty else { return 0..<0 }
    let first = Int(inside.start - addresses.start) / pageSize
    return first..<(Int(inside.end - addresses.start) + pageSize - 1) / pageSize
  }
}

/// Held while the way that a region's pages are protected changes as a whole; outside the wrprotect lock.
final class LayoutLock: Sendable {
  private let mutex = Mutex<Void>(())
  func withLock<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result {
    try mutex.withLock { _ throws(Failure) in try body() }
  }
  /// `nil` rather than wait.
  func withLockIfAvailable<Result, Failure: Error>(_ body: () throws(Failure) -> Result) throws(Failure) -> Result? {
    try mutex.withLockIfAvailable { _ throws(Failure) in try body() }
  }
}

/// Which addresses of the process are managed, so that no two regions overlap.
enum ManagedRanges {
  private struct Claim {
    var range: AddressRange
    /// None while it is being torn down.
    weak var region: Region?
  }
  private struct Ranges {
    var generation = Kernel.forkGeneration
    var claimed: [UInt64: Claim] = [:]
  }
  private static let ranges = Mutex(Ranges())

  static func claim(_ region: Region) throws(PinError) {
    let range = region.addresses
    // A child that was forked in the middle could never map anything.
    try Uffd.withoutForks { () throws(PinError) in
      try ranges.withLock { ranges throws(PinError) in
        // A child of fork() has other memory where its parent has regions.
        if ranges.generation != Kernel.forkGeneration { ranges = Ranges() }
        if let other = ranges.claimed.values.first(where: { $0.range.overlaps(range) }) {
          throw PinError(.inUse, operation: "adopt", range: range, advice: "A region manages \(other.range) already.")
        }
        ranges.claimed[region.id] = Claim(range: range, region: region)
      }
    }
  }

  /// The region that manages an address.
  static func region(at address: UInt) -> Region? {
    Uffd.withoutForks { ranges.withLock { $0.claimed.values.first { $0.range.contains(address) }?.region } }
  }

  static func release(id: UInt64) {
    Uffd.withoutForks { _ = ranges.withLock { $0.claimed.removeValue(forKey: id) } }
  }
}
