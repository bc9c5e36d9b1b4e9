internal import CUffd
internal import Synchronization
internal import SystemPackage

/// A memfd: a file without a name that lives in memory; what a frame pool takes its frames from.
///
/// See memfd_create(2). Noncopyable: dropping the value closes the descriptor; the memory stays for as long as something
/// maps it. The descriptor is always close-on-exec. No call here waits for anything but the kernel's own allocation.
@safe public struct MemoryFile: ~Copyable, Sendable {
  /// The descriptor's number.
  public var descriptor: CInt { number.load(ordering: .acquiring) }
  /// In bytes.
  public var size: Int { byteCount.load(ordering: .acquiring) }

  private let number: Atomic<CInt>
  private let spare = Atomic<CInt>(-1)
  private let tookSpare = Atomic<Bool>(false)
  private let identity: FileIdentity
  private let byteCount: Atomic<Int>

  /// The corresponding C constants are `MFD_…`.
  public struct Options: OptionSet, Sendable, Hashable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Huge pages of 2 MiB. The size and every range must be multiples of it, ``write(_:at:)`` is not supported
    /// (write through a mapping), and pages come out of `vm.nr_hugepages`.
    public static let hugetlb = Options(rawValue: cuffd_memfd_hugetlb)
  }

  /// Makes a file of `size` bytes, all of them a hole: they cost nothing until they are touched or ``allocate(_:)``d.
  ///
  /// - Parameters:
  ///   - name: What `/proc/self/maps` shows behind `memfd:`; need not be unique.
  ///   - size: In bytes; only what is mapped or written needs memory.
  ///   - options: Huge pages or not.
  /// - Throws: `.unsupported` where the kernel lacks memfd or its huge pages, `.limitReached` for descriptors.
  public init(name: String, size: Int, options: Options = []) throws(PinError) {
    guard size >= 0 else { throw PinError(.invalidArgument, operation: "memfd_create with \(size) bytes") }
    let made = unsafe name.withCString { unsafe cuffd_memfd($0, options.rawValue | cuffd_memfd_close_on_exec) }
    let descriptor = CInt(try PinError.check(made, "memfd_create"))
    do throws(PinError) {
      try Self.retrying("ftruncate to \(size) bytes") { cuffd_resize(descriptor, Int64(size)) }
    } catch {
      cuffd_close(descriptor)
      throw error
    }
    guard let identity = FileIdentity(of: descriptor) else { throw .kernel(-9, "memfd_create") }
    self.identity = identity
    number = Atomic(descriptor)
    byteCount = Atomic(size)
  }

  deinit {
    let (first, second) = (descriptor, spare.load(ordering: .acquiring))
    identity.close(first)
    if second != first { identity.close(second) }
  }

  /// The memory it takes now, in bytes; fstat(2)'s `st_blocks`.
  public var residentBytes: Int { Int(cuffd_file_blocks(checked)) * 512 }

  /// Changes the size. Growing adds a hole; shrinking discards what is behind the new end, and touching it through a mapping
  /// then raises SIGBUS.
  public mutating func resize(to size: Int) throws(PinError) {
    try setSize(size)
  }

  func setSize(_ size: Int) throws(PinError) {
    guard size >= 0 else { throw PinError(.invalidArgument, operation: "ftruncate to \(size) bytes") }
    let descriptor = checked
    try Self.retrying("ftruncate to \(size) bytes") { cuffd_resize(descriptor, Int64(size)) }
    byteCount.store(size, ordering: .releasing)
  }

  /// Gives the memory of `range` (bytes) back: it reads as zeros, in every mapping, and costs nothing. `FALLOC_FL_PUNCH_HOLE`.
  ///
  /// Whole pages are freed, parts of pages are zeroed. Trackers of a mapping of it do not hear of it.
  public func punchHole(_ range: Range<Int>) throws(PinError) {
    try check(range, "fallocate(PUNCH_HOLE)")
    guard !range.isEmpty else { return }
    try Self.retrying("fallocate(PUNCH_HOLE) of \(range)") {
      cuffd_punch_hole(checked, Int64(range.lowerBound), Int64(range.count))
    }
  }

  /// Takes memory for all of `range` (bytes) now, so that touching it later cannot fail; what is there stays.
  ///
  /// - Throws: `.outOfSpace` or `.outOfMemory`; a part of the range may have been allocated then.
  public func allocate(_ range: Range<Int>) throws(PinError) {
    try check(range, "fallocate")
    guard !range.isEmpty else { return }
    try Self.retrying("fallocate of \(range)") {
      cuffd_allocate(checked, Int64(range.lowerBound), Int64(range.count))
    }
  }

  /// The parts of `range` (bytes) of a file that are not holes; lseek(2) with `SEEK_DATA` and `SEEK_HOLE`.
  static func dataRuns(of descriptor: CInt, in range: Range<Int>) throws(PinError) -> [Range<Int>] {
    var runs: [Range<Int>] = []
    var position = range.lowerBound
    while position < range.upperBound {
      let start = cuffd_seek_data(descriptor, Int64(position))
      // Nothing but a hole up to the end.
      if start == -Int64(Errno.noSuchAddressOrDevice.rawValue) { break }
      let end = cuffd_seek_hole(descriptor, Int64(try PinError.check(start, "lseek(SEEK_DATA)")))
      try PinError.check(end, "lseek(SEEK_HOLE)")
      if start >= range.upperBound { break }
      runs.append(Int(start)..<min(Int(end), range.upperBound))
      position = Int(end)
    }
    return runs
  }

  /// Fills `bytes` from the file's byte `offset` on: all of it, or an error.
  public func read(into bytes: inout MutableSpan<UInt8>, at offset: Int) throws(PinError) {
    try check(offset, bytes.count, "pread")
    var done = 0
    while done < bytes.count {
      let position = offset + done
      let got = unsafe bytes.withUnsafeMutableBytes {  // pread stays within $0
        unsafe cuffd_pread(checked, $0.baseAddress! + done, $0.count - done, Int64(position))
      }
      if got == -Int(Errno.interrupted.rawValue) { continue }
      done += try PinError.check(got, "pread at \(position)")
      // Only another holder of the descriptor can have cut the file short.
      guard got > 0 else { throw .beyondEnd("pread at \(position)") }
    }
  }

  /// Writes all of `bytes` from the file's byte `offset` on, or throws; a part may have been written then.
  ///
  /// Cheaper for a fresh page than touching it through a mapping.
  public func write(_ bytes: Span<UInt8>, at offset: Int) throws(PinError) {
    try check(offset, bytes.count, "pwrite")
    var done = 0
    while done < bytes.count {
      let position = offset + done
      let put = unsafe bytes.withUnsafeBytes {  // pwrite stays within $0
        unsafe cuffd_pwrite(checked, $0.baseAddress! + done, $0.count - done, Int64(position))
      }
      if put == -Int(Errno.interrupted.rawValue) { continue }
      done += try PinError.check(put, "pwrite at \(position)")
      guard put > 0 else { throw PinError(.outOfSpace, operation: "pwrite at \(position)") }
    }
  }

  private func check(_ range: Range<Int>, _ operation: String) throws(PinError) {
    guard range.lowerBound >= 0, range.upperBound <= size else {
      throw PinError(.outOfBounds, operation: "\(operation) of bytes \(range) of a file of \(size)")
    }
  }

  private func check(_ offset: Int, _ count: Int, _ operation: String) throws(PinError) {
    guard offset >= 0, count <= size, offset <= size - count else {
      throw PinError(.outOfBounds, operation: "\(operation) of \(count) bytes at \(offset) of a file of \(size)")
    }
  }

  private static func retrying(_ operation: @autoclosure () -> String, _ call: () -> CInt) throws(PinError) {
    var result = call()
    while result == -Errno.interrupted.rawValue { result = call() }
    try PinError.check(result, operation())
  }
}

extension MemoryFile {
  /// Keeps a second descriptor of the file, which takes over if other code closes the first.
  func keepSpare() { spare.store(max(-1, cuffd_duplicate(descriptor)), ordering: .releasing) }

  /// The number, after a look at which file it stands for: the spare's if other code has closed the first, -1 if it has closed both. One
  /// fstat(2); async-signal-safe.
  var checked: CInt {
    let now = descriptor
    if identity.isOf(now) { return now }
    let other = spare.load(ordering: .acquiring)
    guard other != now, identity.isOf(other) else { return -1 }
    tookSpare.store(true, ordering: .sequentiallyConsistent)
    _ = number.compareExchange(expected: now, desired: other, ordering: .sequentiallyConsistent)
    return other
  }

  /// Looks at both numbers, and makes a new spare if one is gone. One caller at a time; of a file that keeps a spare.
  func repair() -> MarkedDescriptor.Outcome {
    let (first, second) = (descriptor, spare.load(ordering: .acquiring))
    let (hasFirst, hasSecond) = (identity.isOf(first), second != first && identity.isOf(second))
    if hasFirst, hasSecond { return .whole }
    guard hasFirst || hasSecond else { return .lost }
    let good = hasFirst ? first : second
    number.store(good, ordering: .sequentiallyConsistent)
    spare.store(max(-1, cuffd_duplicate(good)), ordering: .sequentiallyConsistent)
    let wasTaken = tookSpare.exchange(false, ordering: .sequentiallyConsistent)
    return wasTaken || !hasFirst || second >= 0 ? .repaired : .whole
  }
}

extension PinError {
  /// A read ended early because the file did: whoever asked gets no stale bytes.
  static func beyondEnd(_ operation: String) -> PinError {
    PinError(.outOfBounds, operation: operation, advice: "The file ends before the bytes that were asked for.")
  }
}
