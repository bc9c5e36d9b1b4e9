internal import SystemPackage
internal import Synchronization

/// Secret bytes in memory of their own, for keys: locked, in no core dump, not in a child of `fork()`, in no region of PinKit's, with a
/// guard page on either side, read-only once they are written, and wiped when the value is closed or dropped.
///
/// Where the kernel gives memfd_secret(2) memory, it is that: the kernel keeps no mapping of it, and neither a debugger nor
/// `/proc/PID/mem` nor I/O of the kernel's can read it. See ``protection-swift.property``.
///
/// The bytes stay readable for this process between uses. Taking the right away would cost two calls of mprotect(2) for each use, more
/// than sealing a page does, and does not stop who can make system calls.
@safe public struct KeyPage: ~Copyable, Sendable {
  /// How the bytes are protected.
  public enum Protection: String, Sendable, Hashable, Codable, CaseIterable {
    /// memfd_secret(2): locked, and no mapping but this one leads there.
    case secretMemory
    /// mlock(2): private memory that is not swapped out. Root, a debugger and `/proc/PID/mem` can read it. Taken where the kernel lacks
    /// memfd_secret (before Linux 5.14, or `secretmem.enable=0`), or a filter of system calls forbids it.
    case lockedMemory
  }

  public let protection: Protection
  /// In bytes.
  public let count: Int
  private let mapping: SecretMapping
  private let isClosed = Atomic<Bool>(false)
  private let forkGeneration = Kernel.forkGeneration

  /// `count` bytes (not pages) of the kernel's random numbers; getrandom(2).
  ///
  /// - Throws: `.limitReached` where RLIMIT_MEMLOCK does not allow it, `.invalidArgument` for a count below 1.
  public init(randomByteCount count: Int = 32) throws(PinError) {
    try unsafe self.init(count: count) { (bytes) throws(PinError) in try unsafe Memory.fillWithRandom(bytes) }
  }

  /// Moves the bytes of `source` here, and wipes them there: the caller sees to other copies.
  ///
  /// - Throws: As ``init(count:filling:)``; `source` is as it was then.
  public init(moving source: UnsafeMutableRawBufferPointer) throws(PinError) {
    try unsafe self.init(count: source.count) { unsafe $0.copyMemory(from: UnsafeRawBufferPointer(source)) }
    unsafe Memory.wipe(AddressRange(source))
  }

  /// `count` bytes that `body` writes; they are zeros before. If it throws, what it wrote is wiped.
  ///
  /// - Throws: `.limitReached` where RLIMIT_MEMLOCK does not allow it, `.invalidArgument` for a count below 1, and what `body` throws.
  public init(
    count: Int, filling body: (UnsafeMutableRawBufferPointer) throws(PinError) -> Void
  ) throws(PinError) {
    guard count > 0, count < 1 << 30 else {
      throw PinError(.invalidArgument, operation: "a key page of \(count) bytes", advice: "Ask for at least one byte.")
    }
    try Kernel.watchForks()
    let mapping = try SecretMapping(count: count)
    let start = unsafe UnsafeMutableRawPointer(bitPattern: mapping.range.start)!
    do throws(PinError) {
      try unsafe body(UnsafeMutableRawBufferPointer(start: start, count: count))
      try PinError.check(Memory.protect(mapping.range, .read), "mprotect of a key page", mapping.range)
    } catch {
      Memory.wipe(mapping.range)
      throw error
    }
    protection = mapping.isSecretMemory ? .secretMemory : .lockedMemory
    self.count = count
    self.mapping = mapping
  }

  /// Calls `body` with the bytes, which may be read until it returns. Takes no system call and no lock; the caller sees to it that nobody
  /// closes the page meanwhile.
  ///
  /// - Throws: `.keyGone` after ``close()``, `.notInherited` in a child of `fork()`, and what `body` throws.
  public func withUnsafeBytes<Result: ~Copyable>(
    _ body: (UnsafeRawBufferPointer) throws(PinError) -> Result
  ) throws(PinError) -> Result {
    try checkUsable()
    return try unsafe body(UnsafeRawBufferPointer(start: start, count: count))
  }

  /// Wipes the bytes and makes the page inaccessible. Dropping the value does the same. Calling it again does nothing, and so does
  /// calling it in a child of `fork()`, which has no such page.
  public func close() {
    guard isOfThisProcess, !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
    guard Memory.protect(mapping.range, .readWrite) == 0 else { return }
    Memory.wipe(mapping.range)
    _ = Memory.protect(mapping.range, [])
  }

  deinit { close() }

  /// Where the bytes are, for as long as the value lives.
  package var start: UnsafeRawPointer { unsafe UnsafeRawPointer(bitPattern: mapping.range.start)! }

  private var isOfThisProcess: Bool { forkGeneration == Kernel.forkGeneration }

  /// Throws what ``withUnsafeBytes(_:)`` would.
  package func checkUsable() throws(PinError) {
    if isClosed.load(ordering: .acquiring) {
      throw PinError(.keyGone, operation: "use of a key page", advice: "It was closed; make another one.")
    }
    guard isOfThisProcess else {
      throw PinError(
        .notInherited, operation: "use of a key page", advice: "Keys are not inherited: hand the child a key by other means."
      )
    }
  }
}
