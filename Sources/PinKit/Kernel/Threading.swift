internal import CUffd
internal import SystemPackage

/// Futexes, clocks, event descriptors and threads: what the fault path needs of the kernel beside memory.
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

  /// Whether this thread is inside the fault path, or in a callback of a subscriber: what waits for a fault would wait for this thread.
  static var isInFaultPath: Bool { cuffd_in_fault_path() != 0 || cuffd_callback_depth() != 0 }
  static func enterFaultPath() { cuffd_enter_fault_path() }
  static func leaveFaultPath() { cuffd_leave_fault_path() }

  static func enterAccess(_ region: UInt64) { cuffd_enter_access(region) }
  static func leaveAccess(_ region: UInt64) { cuffd_leave_access(region) }
  static func isAccessing(_ region: UInt64) -> Bool { cuffd_is_accessing(region) != 0 }

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

/// An epoll set.
struct EventSet: ~Copyable, Sendable {
  private let descriptor: CInt
  init() throws(PinError) { descriptor = CInt(try PinError.check(cuffd_epoll_create(), "epoll_create1")) }
  deinit { cuffd_close(descriptor) }

  /// Reports `fd` while it is readable to every thread that waits; or, `once`, to one thread, until ``rearm(_:data:)``.
  func add(_ fd: CInt, data: UInt64, once: Bool) throws(PinError) {
    try PinError.check(cuffd_epoll_set(descriptor, fd, data, once ? 1 : 0, 0), "epoll_ctl(ADD)")
  }
  /// Reports `fd` once more as soon as it is readable.
  func rearm(_ fd: CInt, data: UInt64) { _ = cuffd_epoll_set(descriptor, fd, data, 1, 1) }
  func remove(_ fd: CInt) { _ = cuffd_epoll_remove(descriptor, fd) }

  /// Waits for at most `milliseconds` (-1: without end); returns how many of `ready` were filled, 0 also when interrupted.
  func wait(_ ready: inout InlineArray<16, UInt64>, milliseconds: CInt) -> Int {
    let count = unsafe withUnsafeMutablePointer(to: &ready) {
      unsafe cuffd_epoll_wait(descriptor, UnsafeMutableRawPointer($0).assumingMemoryBound(to: UInt64.self), 16, milliseconds)
    }
    return max(0, Int(count))
  }
}

/// An eventfd: wakes a thread that waits in an ``EventSet`` or in ``wait(milliseconds:)``.
struct EventDescriptor: ~Copyable, Sendable {
  let descriptor: CInt
  init() throws(PinError) { descriptor = CInt(try PinError.check(cuffd_eventfd(), "eventfd")) }
  deinit { cuffd_close(descriptor) }
  func signal() { _ = cuffd_eventfd_signal(descriptor) }
  func drain() { _ = cuffd_eventfd_drain(descriptor) }
  /// True if it was signalled within the time.
  func wait(milliseconds: CInt) -> Bool { cuffd_poll_readable(descriptor, milliseconds) > 0 }
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
        advice: "The user or the cgroup may have no more threads: raise `ulimit -u`, or the cgroup's pids.max "
          + "(TasksMax= under systemd); `sysctl kernel.threads-max` is the machine's.")
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
  static func wakeAll(_ address: UnsafeRawPointer) {
    _ = unsafe cuffd_futex_wake(address.assumingMemoryBound(to: UInt32.self), CInt.max)
  }
}
