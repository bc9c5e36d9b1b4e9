internal import CUffd
internal import SystemPackage

/// A mapping that this process made: noncopyable, unmapped when dropped.
@safe struct Mapping: ~Copyable, Sendable {
  let range: AddressRange
  private let forkGeneration = Kernel.forkGeneration

  /// What may be done with the bytes. The corresponding C constants are `PROT_…`.
  struct Protection: OptionSet, Sendable, Hashable {
    let rawValue: CInt
    static let read = Protection(rawValue: 1)
    static let write = Protection(rawValue: 2)
    /// An array literal of both would allocate in a build without optimization, and the fault path may not (K2).
    static let readWrite = Protection(rawValue: 1 | 2)
  }

  /// Where the bytes come from.
  enum Source {
    case anonymous
    /// What nobody may touch: to be mapped over.
    case nothing
    case file(CInt, offset: Int, shared: Bool)
  }

  /// Maps `count` bytes, aligned to `alignment`. Swap is not reserved for anonymous memory (`MAP_NORESERVE`): untouched bytes
  /// cost nothing.
  init(
    count: Int, alignment: Int = 4096, source: Source = .anonymous, extraFlags: CInt = 0, forHugetlb: Bool = false
  ) throws(PinError) {
    let anonymousFlags: CInt = 0x20 | 0x02 | (forHugetlb ? 0 : 0x4000)  // MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE
    let (flags, descriptor, offset, rights): (CInt, CInt, Int, CInt) =
      switch source {
      case .anonymous: (anonymousFlags, -1, 0, 3)
      case .nothing: (anonymousFlags, -1, 0, 0)
      case .file(let descriptor, let offset, let shared): (shared ? 0x01 : 0x02, descriptor, offset, 3)
      }
    guard alignment > 4096, !forHugetlb else {
      var address: UInt64 = 0
      let result = unsafe cuffd_mmap(0, UInt64(count), rights, flags | extraFlags, descriptor, Int64(offset), &address)
      try PinError.check(result, "mmap of \(count) bytes")
      range = AddressRange(start: UInt(address), count: count)
      return
    }
    // Reserve more than is needed, place the mapping at the aligned address, give the rest back.
    var reserved: UInt64 = 0
    try PinError.check(
      unsafe cuffd_mmap(0, UInt64(count + alignment), 0, 0x22 | 0x4000, -1, 0, &reserved), "mmap of \(count) bytes")
    let start = (UInt(reserved) + UInt(alignment) - 1) & ~(UInt(alignment) - 1)
    var address: UInt64 = 0
    let result = unsafe cuffd_mmap(
      UInt64(start), UInt64(count), rights, flags | extraFlags | 0x10, descriptor, Int64(offset), &address)
    if result < 0 {
      _ = cuffd_munmap(reserved, UInt64(count + alignment))
      throw .kernel(Int(result), "mmap of \(count) bytes")
    }
    if UInt(reserved) < start { _ = cuffd_munmap(reserved, UInt64(start - UInt(reserved))) }
    let end = start + UInt(count)
    let reservedEnd = UInt(reserved) + UInt(count + alignment)
    if end < reservedEnd { _ = cuffd_munmap(UInt64(end), UInt64(reservedEnd - end)) }
    range = AddressRange(start: start, count: count)
  }

  /// Zeroed memory for what is noted of pages: on small pages, as most of it is never touched, and in no child of fork() and no core
  /// dump. Where the kernel refuses one of these it costs more, nothing else.
  static func forNotes(count: Int) throws(PinError) -> Mapping {
    let mapping = try Mapping(count: count)
    for advice in [Memory.Advice.noHugePages, .dontFork, .dontDump] { try? Memory.advise(mapping.range, advice) }
    return mapping
  }

  var start: UnsafeMutableRawPointer { unsafe UnsafeMutableRawPointer(bitPattern: range.start)! }

  /// Gives the range to the caller, who unmaps it.
  consuming func keep() -> AddressRange {
    let range = range
    discard self
    return range
  }

  static func unmap(_ range: AddressRange) { _ = cuffd_munmap(UInt64(range.start), UInt64(range.count)) }

  deinit {
    // A child of fork() may not have inherited it, and may have something else there.
    if forkGeneration == Kernel.forkGeneration { _ = cuffd_munmap(UInt64(range.start), UInt64(range.count)) }
  }
}

/// System calls on memory that PinKit does not own as a ``Mapping``.
enum Memory {
  /// The corresponding C constants are `MADV_…`.
  enum Advice: CInt, Sendable {
    /// `MADV_DONTNEED_LOCKED` (Linux 5.18): as `MADV_DONTNEED`, which refuses memory that the program has locked.
    case dontNeed = 24
    case dontFork = 10
    case doFork = 11
    case wipeOnFork = 18
    case hugePages = 14
    case noHugePages = 15
    case dontDump = 16
    case unmergeable = 13
    case pageOut = 21
    case remove = 9
    case populateRead = 22
    case populateWrite = 23
  }

  /// In bytes.
  static let pageSize = Int(cuffd_page_size())

  /// RLIMIT_MEMLOCK in bytes; `nil` where there is none.
  static var lockLimit: Int? {
    var (soft, hard) = (UInt64.max, UInt64.max)
    guard unsafe cuffd_limit_locked_memory(&soft, &hard) == 0, soft != .max else { return nil }
    return Int(clamping: soft)
  }

  static func protect(_ range: AddressRange, _ protection: Mapping.Protection) -> CInt {
    cuffd_mprotect(UInt64(range.start), UInt64(range.count), protection.rawValue)
  }

  /// The same without an error object, for the fault path. 0 or a negative errno.
  static func adviseResult(_ range: AddressRange, _ advice: Advice) -> CInt {
    while true {
      let result = cuffd_madvise(UInt64(range.start), UInt64(range.count), advice.rawValue)
      if result != -Errno.interrupted.rawValue { return result }
    }
  }

  /// Maps a part of a file in the place of what is at `range`, readable and writable. 0 or a negative errno. For the fault path.
  static func replace(
    _ range: AddressRange, file: CInt, offset: Int, _ protection: Mapping.Protection = .readWrite
  ) -> CInt {
    var address: UInt64 = 0
    // MAP_SHARED | MAP_FIXED
    return unsafe cuffd_mmap(
      UInt64(range.start), UInt64(range.count), protection.rawValue, 0x11, file, Int64(offset), &address)
  }

  /// Gives the pages of a shared mapping of a memory file, which are all there, an entry each: they can be written without a fault, as
  /// memory files need not hear of it. What could not be mapped faults later. For the fault path.
  static func mapAround(_ range: AddressRange) {
    // A read fault maps the block of 16 pages that it is in. Asked for all of them the kernel would look each one up, and count
    // it as used once more: that costs three times as much (MAP_POPULATE is the same).
    let block = UInt(16 * pageSize)
    var start = range.start
    while start < range.end {
      _ = adviseResult(AddressRange(start: start, count: pageSize), .populateRead)
      start = (start / block + 1) * block
    }
  }

  /// Moves a mapping over whatever is at `target`; mremap(2). 0 or a negative errno.
  static func move(_ range: AddressRange, to target: UInt) -> CInt {
    cuffd_move_mapping(UInt64(range.start), UInt64(range.count), UInt64(target))
  }

  /// Puts a mapping in the place of `range` that nobody can read or write.
  static func makeInaccessible(_ range: AddressRange) {
    var address: UInt64 = 0
    // MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED
    _ = unsafe cuffd_mmap(UInt64(range.start), UInt64(range.count), 0, 0x02 | 0x20 | 0x4000 | 0x10, -1, 0, &address)
  }

  /// Writes the bytes at `source`, whole pages, into a memory file: all of them, or a negative errno. For the fault path, with signals
  /// blocked.
  static func write(_ source: AddressRange, file: CInt, offset: Int) -> CInt {
    var done = 0
    while done < source.count {
      let start = unsafe UnsafeRawPointer(bitPattern: source.start)! + done
      let put = unsafe cuffd_pwrite_quietly(file, start, source.count - done, Int64(offset + done))
      if put == -Int(Errno.interrupted.rawValue) { continue }
      // The file has been that long before the limit on file sizes (`ulimit -f`) came down.
      if put == -Int(Errno.fileTooLarge.rawValue) { return writeMapped(source, file: file, offset: offset) }
      if put <= 0 { return put == 0 ? -Errno.noSpace.rawValue : CInt(put) }
      done += put
    }
    return 0
  }

  /// The same through a mapping, which no limit on file sizes stops.
  private static func writeMapped(_ source: AddressRange, file: CInt, offset: Int) -> CInt {
    var address: UInt64 = 0
    // MAP_SHARED
    let mapped = unsafe cuffd_mmap(0, UInt64(source.count), 3, 0x01, file, Int64(offset), &address)
    if mapped < 0 { return mapped }
    let target = AddressRange(start: UInt(address), count: source.count)
    defer { Mapping.unmap(target) }
    // Where there is no memory, touching it would be a signal.
    var result = adviseResult(source, .populateRead)
    if result == 0 { result = adviseResult(target, .populateWrite) }
    if result != 0 { return result }
    unsafe copy(
      UnsafeRawPointer(bitPattern: source.start)!, to: UnsafeMutableRawPointer(bitPattern: target.start)!,
      count: source.count)
    return 0
  }

  /// Makes `bytes` of a memory file a hole, also where they are mapped and locked. 0 or a negative errno. For the fault path.
  static func punchHole(file: CInt, _ bytes: Range<Int>) -> CInt {
    if bytes.isEmpty { return 0 }
    while true {
      let result = cuffd_punch_hole(file, Int64(bytes.lowerBound), Int64(bytes.count))
      if result != -Errno.interrupted.rawValue { return result }
    }
  }

  /// Gives the pages of a private mapping frames, as writing to them would, but with an errno where a write would end in a signal:
  /// 0 or a negated errno (`MADV_POPULATE_WRITE`). A kernel before 5.14 does not know it: 0, and writing gives the frames.
  /// Async-signal-safe.
  static func populate(_ range: AddressRange) -> CInt {
    while true {
      let result = cuffd_madvise(UInt64(range.start), UInt64(range.count), Advice.populateWrite.rawValue)
      if result == -Errno.interrupted.rawValue { continue }
      return result == -Errno.invalidArgument.rawValue ? 0 : result
    }
  }

  /// Copies bytes that other threads may change meanwhile; whether they did has to be found out by other means.
  @inline(__always) static func copy(
    _ source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, count: Int
  ) { unsafe cuffd_copy_bytes(target, source, count) }

  /// Writes a byte and changes nothing: the fault of a store, without one.
  static func touch(_ address: UInt) { unsafe cuffd_touch(UnsafeMutableRawPointer(bitPattern: address)!) }

  /// Whether `count` bytes, a multiple of 64, are all zeros.
  @inline(__always) static func isZero(_ bytes: UnsafeRawPointer, count: Int) -> Bool {
    unsafe cuffd_is_zero_beside_writers(bytes, count) != 0
  }

  static func advise(_ range: AddressRange, _ advice: Advice) throws(PinError) {
    try PinError.check(
      cuffd_madvise(UInt64(range.start), UInt64(range.count), advice.rawValue), "madvise(\(advice))", range)
  }
}
