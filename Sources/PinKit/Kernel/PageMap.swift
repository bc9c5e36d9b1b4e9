internal import CUffd
internal import SystemPackage

/// `/proc/self/pagemap`, through `PAGEMAP_SCAN` (Linux 6.7): which pages are present, written, swapped, huge.
///
/// See `Documentation/admin-guide/mm/pagemap.rst`. A scan costs about 3 ns a page that does not match.
/// Not `Sendable`: a scan uses the value's buffer, so one thread at a time.
@safe public struct PageMap: ~Copyable {
  private let file: KnownDescriptor
  private let isShared: Bool
  private let buffer: UnsafeMutablePointer<cuffd_page_region>
  private static let capacity = 4096
  /// The kernel cuts a longer read off without a word.
  private static let mostEntries = 1 << 27

  /// What the kernel knows of a page. The corresponding C constants are `PAGE_IS_…`.
  public struct Categories: OptionSet, Sendable, Hashable, Codable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static let wpAllowed = Categories(rawValue: cuffd_page_is_wpallowed)
    public static let written = Categories(rawValue: cuffd_page_is_written)
    public static let file = Categories(rawValue: cuffd_page_is_file)
    public static let present = Categories(rawValue: cuffd_page_is_present)
    public static let swapped = Categories(rawValue: cuffd_page_is_swapped)
    public static let zeroFrame = Categories(rawValue: cuffd_page_is_pfnzero)
    public static let huge = Categories(rawValue: cuffd_page_is_huge)
    public static let softDirty = Categories(rawValue: cuffd_page_is_soft_dirty)
    /// A guard page (`MADV_GUARD_INSTALL`). Linux 6.15; before, a query that names it fails with `EINVAL`.
    public static let guardPage = Categories(rawValue: cuffd_page_is_guard)
  }

  /// Which pages a scan is about: all of `required` (of which those in `inverted` must be absent), and any of `anyOf`.
  public struct Query: Sendable, Hashable {
    public var required: Categories
    public var inverted: Categories
    public var anyOf: Categories
    /// What of the matching pages' categories is reported; runs with different ones are not joined. Asking for
    /// ``Categories/file`` makes the kernel look at every frame, which costs several times the rest of a scan.
    public var returned: Categories
    /// Write-protect what matches in the same step; needs a `WP_ASYNC` registration.
    public var writeProtects: Bool

    public init(
      required: Categories = [], inverted: Categories = [], anyOf: Categories = [], returned: Categories = .written,
      writeProtects: Bool = false
    ) {
      self.required = required
      self.inverted = inverted
      self.anyOf = anyOf
      self.returned = returned
      self.writeProtects = writeProtects
    }
  }

  /// Of this process: `/proc/self/pagemap`, opened when the first ``AddressSpace`` was made.
  ///
  /// - Throws: ``PinError`` `.unsupported` where this process cannot reach /proc and could not then.
  public init() throws(PinError) { self.init(try ProcessPageMap.file(), isShared: true) }

  /// Of another process: `/proc/PID/pagemap`.
  init(path: String) throws(PinError) {
    let opened = try PinError.opened(unsafe path.withCString { unsafe cuffd_open_file($0, 0) }, path)
    self.init(.raised(opened), isShared: false)
  }

  private init(_ file: KnownDescriptor, isShared: Bool) {
    self.file = file
    self.isShared = isShared
    unsafe buffer = .allocate(capacity: Self.capacity)
    unsafe buffer.initialize(repeating: cuffd_page_region(), count: Self.capacity)
  }

  deinit {
    if !isShared { file.close() }
    unsafe buffer.deallocate()
  }

  /// -1 if other code has closed it, and another one is not to be had.
  private var descriptor: CInt {
    let number = file.checked
    if number >= 0 || !isShared { return number }
    do throws(PinError) { return try ProcessPageMap.file().checked } catch { return -1 }
  }

  /// Calls `body` with every maximal run of matching pages, in order of address.
  ///
  /// Loops until the kernel has walked the whole range (`walk_end`), however often its buffer fills. With
  /// ``Query/writeProtects``, what is protected has been handed to `body`, also if a later step throws.
  public func scan(
    _ range: AddressRange, _ query: Query, _ body: (AddressRange, Categories) -> Void
  ) throws(PinError) { try PinError.check(scanResult(range, query, body), "PAGEMAP_SCAN", range) }

  /// The same without allocating: 0 or a negative errno.
  func scanResult(_ range: AddressRange, _ query: Query, _ body: (AddressRange, Categories) -> Void) -> CLong {
    var at = UInt64(range.start)
    let end = UInt64(range.end)
    while at < end {
      var argument = cuffd_pm_scan()
      argument.flags = query.writeProtects ? cuffd_scan_wp_matching | cuffd_scan_check_wpasync : 0
      argument.start = at
      argument.end = end
      argument.vec = UInt64(UInt(bitPattern: unsafe buffer))
      argument.vec_len = UInt64(Self.capacity)
      argument.category_mask = query.required.rawValue
      argument.category_inverted = query.inverted.rawValue
      argument.category_anyof_mask = query.anyOf.rawValue
      argument.return_mask = query.returned.rawValue
      let count = unsafe cuffd_pagemap_scan(descriptor, &argument)
      if count == -CLong(Errno.interrupted.rawValue) { continue }
      // When it fails half-way the kernel has protected pages and reported them, and does not say how many: up to the first entry
      // that is still zero. So entries are cleared as they are read.
      let limit = count < 0 ? Self.capacity : Int(count)
      for index in 0..<limit {
        let found = unsafe buffer[index]
        if found.end == 0 { break }
        unsafe buffer[index] = cuffd_page_region()
        body(
          AddressRange(start: UInt(found.start), end: UInt(found.end)), Categories(rawValue: found.categories))
      }
      if count < 0 { return count }
      guard argument.walk_end > at else { break }
      at = argument.walk_end
    }
    return 0
  }

  /// Write-protects what matches without reporting it: the cheapest way to arm populated memory.
  public func writeProtect(_ range: AddressRange, _ query: Query) throws(PinError) {
    var at = UInt64(range.start)
    while at < UInt64(range.end) {
      var argument = cuffd_pm_scan()
      argument.flags = cuffd_scan_wp_matching | cuffd_scan_check_wpasync
      argument.start = at
      argument.end = UInt64(range.end)
      argument.category_mask = query.required.rawValue
      argument.category_inverted = query.inverted.rawValue
      argument.category_anyof_mask = query.anyOf.rawValue
      let result = unsafe cuffd_pagemap_scan(descriptor, &argument)
      if result == -CLong(Errno.interrupted.rawValue) { continue }
      try PinError.check(result, "PAGEMAP_SCAN", range)
      guard argument.walk_end > at else { break }
      at = argument.walk_end
    }
  }

  /// The raw 64-bit entries of `/proc/self/pagemap` for a range of 4 KiB pages; frame numbers only with `CAP_SYS_ADMIN`.
  ///
  /// - Throws: ``PinError`` `.invalidArgument` for more than 512 GiB, whose entries would take more than 1 GiB; ask in parts.
  public func entries(_ range: AddressRange) throws(PinError) -> [UInt64] {
    let pageSize = Int(cuffd_page_size())
    guard range.count / pageSize <= Self.mostEntries else {
      throw PinError(
        .invalidArgument, operation: "read /proc/self/pagemap", range: range, advice: "Ask for 512 GiB at most at a time.")
    }
    var entries = [UInt64](repeating: 0, count: range.count / pageSize)
    let offset = Int64(range.start / UInt(pageSize)) * 8
    let wanted = entries.count * 8
    let got = unsafe entries.withUnsafeMutableBytes { unsafe cuffd_pread(descriptor, $0.baseAddress!, wanted, offset) }
    try PinError.check(got, "read /proc/self/pagemap", range)
    return entries
  }

  /// Fills `entries` with as many raw entries from `address` on as the kernel has; returns how many: 0 behind the last mapping, and
  /// of a process that has ended.
  func read(_ address: UInt, into entries: inout [UInt64]) throws(PinError) -> Int {
    let wanted = entries.count * 8
    let offset = Int64(address / UInt(Memory.pageSize)) * 8
    while true {
      let got = unsafe entries.withUnsafeMutableBytes { unsafe cuffd_pread(descriptor, $0.baseAddress!, wanted, offset) }
      if got == -Int(Errno.interrupted.rawValue) { continue }
      return try PinError.check(got, "read pagemap") / 8
    }
  }
}
