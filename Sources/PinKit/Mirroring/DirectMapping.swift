internal import Synchronization

/// A stable window onto a few pages for very frequent access: the rings of a virtqueue, a shared header (the `vmap` of the kernel's vhost).
///
/// ``withBytes(_:)`` costs a few nanoseconds, no system call, and no line of memory that two readers write. An invalidation
/// waits for readers that are inside, never the other way round: a reader that comes later finds the window down, and puts it up again when the
/// change is over, with a fault where the pages are to be written (N1). What was written through it is marked dirty from the callback (N2).
///
/// The window of `.pool` pages is a mapping of its own of their frames, contiguous whatever frames they have, and always at the same
/// address; that of other memory is the region's own bytes.
@safe public final class DirectMapping: Sendable {
  public let region: Region
  public let pages: Range<Int>
  public typealias Access = MappingAccess
  public let access: Access
  private let window: Window
  private let interval: IntervalSubscription
  private let protection: RegionProtection
  /// Held while the window is put up.
  private let building = Mutex(())

  /// - Throws: ``PinError``, as ``Region/subscribe(_:to:file:line:)``; `.outOfMemory` for the window.
  public init(_ region: Region, pages: Range<Int>, for access: Access = .writing) throws(PinError) {
    let pages = try region.subscribable(pages)
    let window = try Window(region, pages, isWritable: access == .writing)
    self.region = region
    self.pages = pages
    self.access = access
    self.window = window
    protection = try region.protection()
    interval = try IntervalSubscription(region, pages: pages, young: window) { window.invalidate($0) }
  }

  /// Calls `body` with the bytes of the pages, valid until it returns. Be short, keep no pointer, do nothing that waits, and touch the
  /// region in no other way inside: an invalidation waits for it.
  ///
  /// Blocks while the pages change. Through a mapping for reading the bytes may only be read.
  ///
  /// - Throws: ``PinError``: `.accessDenied`, `.unmapped`, `.stopped` after ``close()``, `.wouldDeadlock` from a callback, or where the
  ///   window is down and the thread is inside `body` of a mirror or mapping of this region already; `.limitReached` where eight of them are
  ///   nested or a thousand threads use some; `.timedOut`. And what `body` throws.
  @inlinable public func withBytes<Result>(_ body: (UnsafeMutableRawBufferPointer) throws -> Result) throws -> Result {
    while true {
      if enter() {
        defer { leave() }
        return try unsafe body(bytes)
      }
      try build()
    }
  }

  @usableFromInline var bytes: UnsafeMutableRawBufferPointer { unsafe window.bytes }

  /// True inside the critical section, with the window up.
  @usableFromInline func enter() -> Bool {
    guard CriticalSection.enter(window.identity, of: region.id) else { return false }
    if window.isUp(at: interval.sequence) { return true }
    CriticalSection.leave()
    return false
  }
  @usableFromInline func leave() { CriticalSection.leave() }

  /// Puts the window up, unless something changes again right away.
  @usableFromInline func build() throws(PinError) {
    try CriticalSection.requireRoom("withBytes", region.addresses)
    try region.requireOutsideFaultPath("withBytes")
    try region.enter("withBytes")
    defer { region.leave() }
    try building.withLock { _ throws(PinError) in
      try InvalidationRange.withOwner(self) { () throws(PinError) in
        let sequence = try interval.readBegin()
        if window.isUp(at: sequence) { return }
        // Asked first: a page that is opened counts as written.
        try region.requireRights(pages, forWriting: access == .writing, "translate")
        for page in pages { _ = try region.translate(page, forWriting: access == .writing, by: protection) }
        TestHooks.reach(.translated, page: pages.lowerBound)
        // Nobody is inside: those who were have been waited for, and the window is down. What changes from here on changes the number.
        try window.map(by: protection)
        window.setUp(at: sequence)
      }
    }
  }

  /// Whether the next access finds the window up.
  public var isEstablished: Bool { window.isUp(at: interval.sequence, isUse: false) }

  /// Takes the window down for good. Blocks while callbacks run, and until nobody is inside ``withBytes(_:)``.
  public func close() {
    // In this order: as long as the window is up, changes have to be told.
    interval.refuseTranslations()
    if region.space.isOfThisProcess { window.close() }
    interval.remove()
  }

  deinit { close() }
}

/// The memory of a window, and for which moment it is right.
@safe final class Window: YoungPages, @unchecked Sendable {  // atomics; the mapping changes under the owner's lock
  private static let down = UInt64.max
  private let region: AddressRange
  private let pages: Range<Int>
  private let pageSize: Int
  private let table: PageTable
  private let isWritable: Bool
  private let frames: RegionFrames?
  private let mapping: Mapping?
  private let forkGeneration = Kernel.forkGeneration
  let range: AddressRange
  /// Up while this is the interval's sequence number.
  private let sequence = Atomic<UInt64>(down)
  /// Held while the window goes up or down for good; true from then on.
  private let isClosed = Mutex(false)
  private let patience = ReaderPatience()
  /// A use that is seen late counts for the next look.
  private let isYoung = Atomic<Bool>(false)
  private let wasUsed = Atomic<Bool>(false)
  /// Of a use the window knows only that it was, and each page is asked about for itself: those that were not since.
  private let young: Mutex<[Bool]>
  /// The frames in the window, page by page; the owner's lock.
  private let mapped: Mutex<[FramePlace?]>

  init(_ region: Region, _ pages: Range<Int>, isWritable: Bool) throws(PinError) {
    self.region = region.addresses
    self.pages = pages
    pageSize = region.pageSize
    table = region.table
    self.isWritable = isWritable
    frames = region.frames
    mapped = Mutex([FramePlace?](repeating: nil, count: pages.count))
    young = Mutex([Bool](repeating: false, count: pages.count))
    if region.frames != nil {
      let mapping = try Mapping(count: pages.count * Memory.pageSize)
      range = mapping.range
      for advice in [Memory.Advice.dontFork, .dontDump] { try Memory.advise(mapping.range, advice) }
      self.mapping = consume mapping
    } else {
      range = region.addressesUnchecked(of: pages)
      mapping = nil
    }
  }

  var identity: UInt { UInt(bitPattern: unsafe Unmanaged.passUnretained(self).toOpaque()) }

  var bytes: UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: range.start), count: range.count)
  }

  @inline(__always) func isUp(at now: UInt64, isUse: Bool = true) -> Bool {
    guard sequence.load(ordering: .acquiring) == now, forkGeneration == Kernel.forkGeneration else { return false }
    // Looked at first: two readers would fight for a line that both write. Where it is set, whoever did that notes the use, and is waited for
    // before anybody asks.
    if isUse, !isYoung.load(ordering: .relaxed) {
      isYoung.store(true, ordering: .relaxed)
      wasUsed.store(true, ordering: .relaxed)
    }
    return true
  }

  func setUp(at now: UInt64) {
    isClosed.withLock { isClosed in
      guard !isClosed else { return }
      isYoung.store(false, ordering: .relaxed)
      sequence.store(now, ordering: .sequentiallyConsistent)
    }
  }

  /// Puts the frames that the pages have now into the window, a call for each run of frames that lie together.
  func map(by protection: RegionProtection) throws(PinError) {
    guard let frames else { return }
    try mapped.withLock { mapped throws(PinError) in
      var page = pages.lowerBound
      while page < pages.upperBound {
        guard let first = protection.frame(of: page) else { return }
        var end = page + 1
        while end < pages.upperBound, protection.frame(of: end) == first.advanced(by: (end - page) * Memory.pageSize) {
          end += 1
        }
        let slots = page - pages.lowerBound..<end - pages.lowerBound
        if slots.contains(where: { mapped[$0] != first.advanced(by: ($0 - slots.lowerBound) * Memory.pageSize) }) {
          let part = AddressRange(
            start: range.start + UInt(slots.lowerBound * Memory.pageSize), count: slots.count * Memory.pageSize)
          let result = Memory.replace(
            part, file: frames.pool.descriptor(of: first), offset: first.offset, isWritable ? .readWrite : .read)
          try PinError.check(result, "mmap of a window", part)
          for advice in [Memory.Advice.dontFork, .dontDump] { try Memory.advise(part, advice) }
          for slot in slots { mapped[slot] = first.advanced(by: (slot - slots.lowerBound) * Memory.pageSize) }
        }
        page = end
      }
    }
  }

  /// The number has changed already: nobody new comes in.
  func invalidate(_ range: InvalidationRange) -> InvalidationResponse {
    if CriticalSection.isInside(identity) { return .wouldBlock }
    guard patience.waitUntilEmpty(identity, for: range) else { return .wouldBlock }
    let touched = range.pages.clamped(to: pages)
    if isWritable,
      touched == pages ? wasUsed.exchange(false, ordering: .sequentiallyConsistent) : wasUsed.load(ordering: .acquiring)
    {
      try? range.markDirty(touched)
    }
    return .done
  }

  func close() {
    isClosed.withLock { isClosed in
      isClosed = true
      sequence.store(Self.down, ordering: .sequentiallyConsistent)
    }
    _ = CriticalSection.waitUntilEmpty(identity, patience: .max)
    if isWritable, wasUsed.exchange(false, ordering: .sequentiallyConsistent) { table.discarded.insertVisibly(pages) }
  }

  func testYoung(_ range: Range<Int>) -> Bool {
    isYoung.load(ordering: .relaxed)
      || young.withLock { young in range.clamped(to: pages).contains { young[$0 - pages.lowerBound] } }
  }

  func clearYoung(_ range: Range<Int>) -> Bool {
    young.withLock { young in
      if isYoung.exchange(false, ordering: .relaxed) { for slot in young.indices { young[slot] = true } }
      var wasYoung = false
      for page in range.clamped(to: pages) where young[page - pages.lowerBound] {
        young[page - pages.lowerBound] = false
        wasYoung = true
      }
      return wasYoung
    }
  }
}
