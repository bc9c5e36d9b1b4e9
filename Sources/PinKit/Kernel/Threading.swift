internal import CUffd
internal import SystemPackage

/// Clocks, forks, signal masks, threads and futexes: what the fault path needs of the kernel beside memory.
enum Kernel {
  /// CLOCK_MONOTONIC in nanoseconds.
  @inline(__always) static func now() -> UInt64 { cuffd_now_ns() }
  /// At most 30 years, so that a sum with ``now()`` never overflows. Negative or not a number: 0.
  static func nanoseconds(_ seconds: Double) -> UInt64 { seconds > 0 ? UInt64(min(seconds, 1e9) * 1e9) : 0 }
  static func pause(nanoseconds: UInt64) { cuffd_pause(nanoseconds) }
  @inline(__always) static func relax() { cuffd_relax() }
  static var threadID: CInt { cuffd_tid() }
  /// How many processors this process may use.
  static var processorCount: Int { Int(cuffd_processor_count()) }
  /// How many descriptors this process may have open.
  static var descriptorLimit: Int {
    var (soft, hard): (UInt64, UInt64) = (0, 0)
    return unsafe cuffd_limit_descriptors(&soft, &hard) == 0 ? Int(clamping: soft) : 1_024
  }
  /// The calling thread's stack; `nil` where it cannot be told.
  static var stack: AddressRange? {
    var start: UInt64 = 0
    var end: UInt64 = 0
    guard unsafe cuffd_stack(&start, &end) == 0 else { return nil }
    return AddressRange(start: UInt(start), end: UInt(end))
  }

  /// How often this process image came out of `fork()` as the child since the library was loaded.
  @inline(__always) static var forkGeneration: UInt32 { cuffd_fork_generation() }
  static func watchForks() throws(PinError) { try PinError.check(cuffd_fork_watch(), "pthread_atfork") }

  /// Whether this thread is in no callback, not in the fault path, and inside no mirror or mapping.
  @inline(__always) static var isOutsideAll: Bool { cuffd_thread_is_plain() != 0 && !CriticalSection.isInsideAny }
  /// Whether this thread is inside the fault path, or in a callback of a subscriber: what waits for a fault would wait for this thread.
  @inline(__always) static var isInFaultPath: Bool { cuffd_in_fault_path() != 0 || cuffd_callback_depth() != 0 }
  /// The same of the code that a signal handler has interrupted.
  static var wasInFaultPath: Bool { cuffd_serves_faults() != 0 || cuffd_callback_depth() != 0 }
  static func enterFaultPath() { cuffd_enter_fault_path() }
  static func leaveFaultPath() { cuffd_leave_fault_path() }

  /// Writes `text` to standard error and aborts; callable anywhere.
  static func die(_ text: String) -> Never {
    unsafe text.withCString { unsafe cuffd_die($0) }
    fatalError("abort(3) returned")
  }

  /// Runs `body` with all signals blocked but those of faults: nothing that a signal handler does can then wait for what this
  /// thread holds.
  static func withSignalsBlocked<Result, Failure: Error>(
    _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    var saved: InlineArray<16, UInt64> = .init(repeating: 0)  // a sigset_t is 128 bytes
    unsafe cuffd_block_signals(&saved)
    defer { unsafe cuffd_restore_signals(&saved) }
    return try body()
  }
}

/// A pthread that never receives a signal sent to the process, with a stack of the size that `ulimit -s` says (8 MiB as a rule).
struct KernelThread: Sendable {
  private let handle: UInt64

  /// `body` gets `context`; `onExit` gets it too, however the thread ends.
  init(
    name: String, context: UnsafeMutableRawPointer,
    body: @convention(c) (UnsafeMutableRawPointer?) -> Void,
    onExit: @convention(c) (UnsafeMutableRawPointer?) -> Void
  ) throws(PinError) {
    var handle: UInt64 = 0
    let result = unsafe name.withCString { unsafe cuffd_thread_start($0, body, onExit, context, &handle) }
    if result == -Errno.resourceTemporarilyUnavailable.rawValue {
      throw PinError(
        .limitReached, operation: "start the thread \(name)", errno: .resourceTemporarilyUnavailable,
        advice: PinError.threadAdvice)
    }
    try PinError.check(result, "pthread_create")
    self.handle = handle
  }

  func join() { cuffd_thread_join(handle) }
  /// Ends the calling thread.
  static func exitCurrent() { cuffd_thread_exit() }
}

/// Sleeping on a word of memory.
enum Futex {
  /// Sleeps while the 32-bit word at `address` holds `value`; may return early.
  static func wait(_ address: UnsafeRawPointer, while value: UInt32) {
    _ = unsafe cuffd_futex_wait(address.assumingMemoryBound(to: UInt32.self), value)
  }
  /// The same for at most `milliseconds`; -1: without end.
  static func wait(_ address: UnsafeRawPointer, while value: UInt32, milliseconds: CInt) {
    _ = unsafe cuffd_futex_wait_for(address.assumingMemoryBound(to: UInt32.self), value, milliseconds)
  }
  static func wakeAll(_ address: UnsafeRawPointer) {
    _ = unsafe cuffd_futex_wake(address.assumingMemoryBound(to: UInt32.self), CInt.max)
  }
}
