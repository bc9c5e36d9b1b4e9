internal import CUffd
public import SystemPackage

/// An io_uring: reads, writes and syncs queued in memory, handed to the kernel in batches, completed in any order.
///
/// See io_uring(7). Noncopyable, and every operation is exclusive: one thread at a time. Dropping the value drops what was not
/// submitted, cancels what can be cancelled and waits for the rest, so no operation touches its memory afterwards.
@safe public struct SubmissionRing: ~Copyable, @unchecked Sendable {  // all use of `raw` after init is in mutating methods
  let raw: OpaquePointer
  /// How many operations can be queued between two submissions; a power of two.
  public let capacity: Int
  /// In a child of `fork()` it is the parent's: nothing is queued, submitted or taken there.
  let forkGeneration = Kernel.forkGeneration

  /// Whether an operation could be queued.
  public enum QueueOutcome: Sendable, Hashable {
    /// It goes to the kernel with the next ``submit(waitingFor:)``.
    case queued
    /// The queue is full, or the ring is a parent's, and nothing was queued: submit first, which says so.
    case full
  }

  /// What became of one operation.
  public struct Completion: Sendable, Hashable {
    /// What the operation was queued with.
    public var userData: UInt64
    public var outcome: Outcome

    public enum Outcome: Sendable, Hashable {
      /// So many bytes were transferred; fewer than asked for is a short transfer, 0 the end of the file. 0 for a sync.
      case done(bytes: Int)
      case failed(Errno)
    }
  }

  /// Creates a ring.
  ///
  /// - Parameter entries: How many operations it shall hold; the kernel rounds up to a power of two, at most 32,768.
  /// - Throws: `.permissionDenied` where a sysctl or seccomp forbids it, `.unsupported` where the kernel lacks it.
  public init(entries: Int) throws(PinError) {
    guard (1...32768).contains(entries) else {
      throw PinError(
        .invalidArgument, operation: "io_uring_setup with \(entries) entries", advice: "1 to 32768 entries are possible.")
    }
    var made: OpaquePointer?
    let result = unsafe cuffd_ring_create(UInt32(entries), &made)
    guard result >= 0, let made = unsafe made else { throw .kernel(Int(result), "io_uring_setup") }
    unsafe raw = made
    capacity = Int(unsafe cuffd_ring_entries(made))
  }

  deinit { unsafe cuffd_ring_destroy(raw) }

  /// How many operations were queued whose completions have not been taken.
  public var inFlight: Int { mutating get { Int(unsafe cuffd_ring_in_flight(raw)) } }

  /// Queues a read of `memory.count` bytes from the file's byte `offset` on.
  ///
  /// `memory` must stay mapped, and nobody may rely on its content, until the completion was taken. More than about 2 GiB are
  /// transferred short. A negative offset completes with `EINVAL`, memory at address 0 with `EFAULT`.
  public mutating func queueRead(
    from descriptor: CInt, at offset: Int, into memory: AddressRange, userData: UInt64
  ) -> QueueOutcome {
    let (address, length) = unsafe Self.arguments(memory)
    return Self.outcome(unsafe cuffd_ring_read(raw, descriptor, address, length, Self.position(offset), userData))
  }

  /// Queues a write of the bytes of `memory` to the file's byte `offset` on.
  ///
  /// `memory` must stay mapped until the completion was taken; what is written of bytes that change meanwhile is undefined.
  public mutating func queueWrite(
    to descriptor: CInt, at offset: Int, from memory: AddressRange, userData: UInt64
  ) -> QueueOutcome {
    let (address, length) = unsafe Self.arguments(memory)
    return Self.outcome(unsafe cuffd_ring_write(raw, descriptor, address, length, Self.position(offset), userData))
  }

  /// Queues an fsync(2), or fdatasync(2) if `dataOnly`. It covers writes that have *completed* when it is submitted: operations
  /// of one batch run in any order.
  public mutating func queueSync(_ descriptor: CInt, dataOnly: Bool = false, userData: UInt64) -> QueueOutcome {
    Self.outcome(unsafe cuffd_ring_fsync(raw, descriptor, dataOnly ? 1 : 0, userData))
  }

  /// Has the kernel begin to write the file's dirty pages to the device. Only advice: a sync must follow, and reports the errors.
  mutating func queueWriteback(_ descriptor: CInt, userData: UInt64) -> QueueOutcome {
    Self.outcome(unsafe cuffd_ring_start_writeback(raw, descriptor, userData))
  }

  /// Hands what is queued to the kernel and blocks until `count` completions can be taken, or all if fewer are in flight.
  ///
  /// Signals do not end it. Returns how many operations were submitted.
  @discardableResult
  public mutating func submit(waitingFor count: Int = 0) throws(PinError) -> Int {
    let result = unsafe cuffd_ring_submit(raw, UInt32(clamping: count))
    if result == -Errno.noChildProcess.rawValue { throw .notInherited("io_uring_enter") }
    if result == -Errno.badFileDescriptor.rawValue {
      throw PinError(
        .descriptorLost, operation: "io_uring_enter", errno: .badFileDescriptor, advice: PinError.closedAdvice)
    }
    return try PinError.check(result, "io_uring_enter")
  }

  /// Takes one completion without waiting; `nil` if there is none.
  public mutating func nextCompletion() -> Completion? {
    var found = cuffd_completion()
    guard unsafe cuffd_ring_reap(raw, &found, 1) == 1 else { return nil }
    return Completion(
      userData: found.user_data,
      outcome: found.result < 0 ? .failed(Errno(rawValue: -found.result)) : .done(bytes: Int(found.result)))
  }

  /// Takes all completions that are there, without waiting.
  public mutating func completions() -> [Completion] {
    var found: [Completion] = []
    while let completion = nextCompletion() { found.append(completion) }
    return found
  }

  /// Forgets what was queued and not submitted; returns how many operations that were.
  @discardableResult
  mutating func discardQueued() -> Int { Int(unsafe cuffd_ring_discard(raw)) }

  /// Drops what was queued and not submitted, and waits for the rest, where it cannot be submitted to any more; 10 s at most.
  mutating func settle() {
    discardQueued()
    unsafe cuffd_ring_settle(raw)
  }

  /// Registers memory as fixed buffer 0: the kernel's long-term pin on its pages. A write through it raises no fault.
  mutating func registerBuffer(_ memory: AddressRange) throws(PinError) {
    guard let address = unsafe UnsafeMutableRawPointer(bitPattern: memory.start) else {
      throw PinError(.invalidArgument, operation: "io_uring_register_buffers", range: memory)
    }
    try PinError.check(
      unsafe cuffd_ring_register_buffer(raw, address, UInt64(memory.count)), "io_uring_register_buffers", memory)
  }

  /// Drops the long-term pin.
  mutating func unregisterBuffers() throws(PinError) {
    try PinError.check(unsafe cuffd_ring_unregister_buffers(raw), "io_uring_unregister_buffers")
  }

  /// What C calls a null pointer becomes an address that no process has.
  static func arguments(_ memory: AddressRange) -> (UnsafeMutableRawPointer, UInt32) {
    let start = unsafe UnsafeMutableRawPointer(bitPattern: memory.start == 0 ? UInt.max - 4095 : memory.start)!
    return unsafe (start, UInt32(clamping: min(memory.count, 0x7fff_f000)))
  }

  /// -1 would mean the descriptor's own position: every negative offset is the one that the kernel refuses.
  static func position(_ offset: Int) -> UInt64 { offset < 0 ? 1 << 63 : UInt64(offset) }

  mutating func queue(_ body: (OpaquePointer) -> CInt) -> QueueOutcome { Self.outcome(unsafe body(raw)) }

  static func outcome(_ result: CInt) -> QueueOutcome { result < 0 ? .full : .queued }
}
