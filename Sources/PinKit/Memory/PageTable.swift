internal import Synchronization

/// PinKit's own PTEs, eight bytes a page, and indices of those that are open or pinned. Untouched pages cost nothing.
///
///     bits  0..7   flags
///     bit   8      it was pinned for writing since the last collection
///     bits  9..19  pins for writing
///     bits 20..31  pins for reading
///     bits 32..63  the extent of the pool that its frame is in
@safe struct PageTable: @unchecked Sendable {  // entries are touched through atomics only
  let pageCount: Int
  let entries: UnsafeMutablePointer<Atomic<UInt64>>
  /// The pages whose entry says ``Entry/open``.
  let open: PageBitmap
  /// The pages that were dropped since the last collection: they read as zeros, and a protection they had may be gone.
  let discarded: PageBitmap
  /// The pages that may be pinned, or were for writing since the last collection; see `PageTable+Pins.swift`.
  let pinned: PageBitmap
  /// The pages whose entry may say ``Entry/told``.
  private let told: PageBitmap
  private let summary: UnsafeMutablePointer<Atomic<UInt64>>

  /// The flags of an entry; zero is a page that is mapped, may be written by the user, and is not open.
  struct Entry: OptionSet, Sendable {
    let rawValue: UInt64
    /// A fault handler is deciding on the page.
    static let claimed = Entry(rawValue: 1 << 0)
    /// Someone sleeps until the claim is released.
    static let contended = Entry(rawValue: 1 << 1)
    /// The page was written, or may have been, since it was last protected: the primary MMU lets writes through.
    static let open = Entry(rawValue: 1 << 2)
    /// It was opened for a neighbour's sake, without a fault of its own.
    static let faultAround = Entry(rawValue: 1 << 3)
    /// The page changes frame at this moment, and has none to be looked up. Its claim is held.
    static let cleared = Entry(rawValue: 1 << 7)
    /// First-write callbacks were told of the page, and it could not be opened yet.
    static let told = Entry(rawValue: 1 << 6)
    /// The user took the right to write away.
    static let writeDenied = Entry(rawValue: 1 << 4)
    /// The user took the right to read away.
    static let readDenied = Entry(rawValue: 1 << 5)

    // Together; an array literal of flags would allocate in a build without optimization, and the fault path may not (K2).
    static let claim = Entry(rawValue: 1 << 0 | 1 << 1)
    static let openAround = Entry(rawValue: 1 << 2 | 1 << 3)
    static let denied = Entry(rawValue: 1 << 4 | 1 << 5)
    static let openOrDenied = Entry(rawValue: 1 << 2 | 1 << 4 | 1 << 5)
    static let openOrTold = Entry(rawValue: 1 << 2 | 1 << 6)
    static let deniedOrTold = Entry(rawValue: 1 << 4 | 1 << 5 | 1 << 6)
    static let openDeniedOrTold = Entry(rawValue: 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6)

    /// What the user left of the rights to the page.
    var rights: Mapping.Protection { contains(.readDenied) ? [] : contains(.writeDenied) ? .read : .readWrite }
  }

  /// The words before the entries: the summary, and the tops of the bitmaps.
  private static let headerSize = 64

  /// In bytes, for so many pages.
  static func size(pageCount: Int) -> Int { headerSize + pageCount * 8 + 4 * PageBitmap.size(pageCount: pageCount) }

  /// `memory` must be zeroed, hold ``size(pageCount:)`` bytes and outlive the value.
  init(memory: UnsafeMutableRawPointer, pageCount: Int) {
    self.pageCount = pageCount
    unsafe summary = memory.bindMemory(to: Atomic<UInt64>.self, capacity: 8)
    unsafe entries = (memory + Self.headerSize).bindMemory(to: Atomic<UInt64>.self, capacity: pageCount)
    let bitmaps = unsafe memory + Self.headerSize + pageCount * 8
    open = unsafe PageBitmap(memory: bitmaps, top: summary + 1, pageCount: pageCount)
    discarded = unsafe PageBitmap(
      memory: bitmaps + PageBitmap.size(pageCount: pageCount), top: summary + 2, pageCount: pageCount)
    pinned = unsafe PageBitmap(
      memory: bitmaps + 2 * PageBitmap.size(pageCount: pageCount), top: summary + 3, pageCount: pageCount)
    told = unsafe PageBitmap(
      memory: bitmaps + 3 * PageBitmap.size(pageCount: pageCount), top: summary + 4, pageCount: pageCount)
  }

  /// Whether the user took rights away from any page since the region was made. Never taken back: who does not see it yet comes before the call
  /// that took them. Whoever must not is kept apart from that call, by the wrprotect lock or inside a checked access, or looks again.
  @inline(__always) var hasDeniedPages: Bool { unsafe summary.pointee.load(ordering: .relaxed) & 1 != 0 }
  func noteDeniedPages() { unsafe summary.pointee.bitwiseOr(1, ordering: .relaxed) }

  @inline(__always) subscript(page: Int) -> Entry {
    Entry(rawValue: unsafe entries[page].load(ordering: .acquiring))
  }

  /// Whether any page may be pinned, or ever was. Set under the shared wrprotect lock.
  @inline(__always) var hasPins: Bool { unsafe summary.pointee.load(ordering: .relaxed) & 2 != 0 }
  func notePins() { unsafe summary.pointee.bitwiseOr(2, ordering: .sequentiallyConsistent) }

  /// Returns the entry before.
  @discardableResult @inline(__always) func insert(_ flags: Entry, at page: Int) -> Entry {
    Entry(rawValue: unsafe entries[page].bitwiseOr(flags.rawValue, ordering: .acquiringAndReleasing).oldValue)
  }

  @discardableResult @inline(__always) func remove(_ flags: Entry, at page: Int) -> Entry {
    Entry(rawValue: unsafe entries[page].bitwiseAnd(~flags.rawValue, ordering: .acquiringAndReleasing).oldValue)
  }

  /// Remembers that first-write callbacks were told of a page that could not be opened; under the shared wrprotect lock.
  func noteTold(_ page: Int) {
    insert(.told, at: page)
    told.insert(page..<page + 1)
  }

  /// Callbacks are told of these pages again: they have not heard, or the pages are written in another epoch than was said. Under the exclusive
  /// lock.
  func forgetTold() { told.drain { run in for page in run { remove(.told, at: page) } } }

  /// Lets nobody find the frames of `pages`, which are claimed, until ``set(_:)``.
  @inline(__always) func clear(_ pages: Range<Int>) { for page in pages { insert(.cleared, at: page) } }
  @inline(__always) func set(_ pages: Range<Int>) { for page in pages { remove(.cleared, at: page) } }

  /// The same for whoever holds the wrprotect lock exclusively: nobody else changes entries then, so no locked instruction is
  /// needed, unless pins may be counted, which takes no lock. Returns the entry before.
  @inline(__always) func removeExclusively(_ flags: Entry, at page: Int) -> Entry {
    if hasPins { return remove(flags, at: page) }
    let before = unsafe entries[page].load(ordering: .relaxed)
    unsafe entries[page].store(before & ~flags.rawValue, ordering: .relaxed)
    return Entry(rawValue: before)
  }

  // MARK: Frames

  /// Which extent of the pool a page's frame is in: the upper half of the entry; 0 is the region's base.
  @inline(__always) func extent(_ page: Int) -> UInt32 {
    UInt32(truncatingIfNeeded: unsafe entries[page].load(ordering: .acquiring) >> 32)
  }

  /// The claim of the page is held; its flags may change meanwhile.
  @inline(__always) func setExtent(_ extent: UInt32, at page: Int) {
    var before = unsafe entries[page].load(ordering: .relaxed)
    while true {
      let (done, seen) = unsafe entries[page].compareExchange(
        expected: before, desired: before & 0xffff_ffff | UInt64(extent) << 32, ordering: .sequentiallyConsistent)
      if done { return }
      before = seen
    }
  }

  // MARK: Claims

  /// Claims a page for this thread if nobody has it; returns the entry before, which holds `.claimed` if somebody did.
  @inline(__always) func tryClaim(_ page: Int, file: StaticString = #fileID, line: UInt = #line) -> Entry {
    let before = insert(.claimed, at: page)
    if LockOrder.isOn, !before.contains(.claimed) { noteClaim(page, LockPlace(file: file, line: line)) }
    return before
  }

  /// Claims a page; while somebody else has it, sleeps. Async-signal-safe. Returns the entry before the claim. Who has claims of this
  /// table may claim only pages behind them, unless it has the wrprotect lock exclusively.
  @inline(__always) func claim(_ page: Int, file: StaticString = #fileID, line: UInt = #line) -> Entry {
    if LockOrder.isOn { willClaim(page, LockPlace(file: file, line: line)) }
    let before = tryClaim(page, file: file, line: line)
    return before.contains(.claimed) ? claimSlowly(page, LockPlace(file: file, line: line)) : before
  }

  private func claimSlowly(_ page: Int, _ place: LockPlace) -> Entry {
    LockOrder.willWait(for: Self.claimName, place: place)
    defer { LockOrder.didWait() }
    while true {
      let seen = insert(.contended, at: page)
      if seen.contains(.claimed) {
        let word = unsafe UnsafeRawPointer(entries + page)
        unsafe Futex.wait(unsafe word, while: UInt32(truncatingIfNeeded: seen.union(.contended).rawValue))
      }
      let before = insert(.claimed, at: page)
      if before.contains(.claimed) { continue }
      if LockOrder.isOn { noteClaim(page, place) }
      return before
    }
  }

  @inline(__always) func releaseClaim(_ page: Int) {
    let before = remove(.claim, at: page)
    if before.contains(.contended) { unsafe Futex.wakeAll(unsafe UnsafeRawPointer(entries + page)) }
    if LockOrder.isOn { LockOrder.released(key: key) }
  }

  // MARK: The lock order

  private static var claimName: StaticString { "claim of a page" }
  /// Tells the table from others.
  private var key: UInt { UInt(bitPattern: unsafe entries) }

  @inline(never) private func willClaim(_ page: Int, _ place: LockPlace) {
    LockOrder.willAcquire(.page, Self.claimName, key: key, index: page, place: place)
  }

  @inline(never) private func noteClaim(_ page: Int, _ place: LockPlace) {
    LockOrder.acquired(.page, Self.claimName, key: key, index: page, place: place)
  }
}
