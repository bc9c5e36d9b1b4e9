internal import Logging
internal import SystemPackage

/// Ranges of a region that an io_uring has registered as fixed buffers: the kernel's own long-term pin, held as a ``Pin`` for exactly as long.
///
/// `READ_FIXED` writes into the pages without a fault, whatever protects them. The pin makes that safe: every collection has the pages until
/// after ``close()``, a snapshot copies them at once (P6), and nothing takes them away (P4). Every operation is exclusive: one thread at a
/// time. Dropping the value does what ``close()`` does.
@safe public struct FixedBuffers: ~Copyable {
  let registration: FixedRegistration
  /// Which region, and the pages of each buffer, in the order of their numbers.
  public let region: Region
  public let ranges: [Range<Int>]
  let memory: [AddressRange]

  /// Pins the ranges for writing, and registers them with a ring of their own. Blocks as ``Region/pin(_:_:)`` does.
  ///
  /// - Parameters:
  ///   - region: Of any memory but a shared mapping of a file of a file system.
  ///   - ranges: Pages, at least one range; buffers are numbered from 0 in this order.
  ///   - entries: How many operations can be queued between two submissions.
  /// - Throws: ``PinError``: what ``Region/pin(_:_:)`` throws if any page cannot be pinned, `.needsDirtyTracking` for one (P1);
  ///   `.limitReached` where RLIMIT_MEMLOCK is too low, `.outOfMemory`, `.unsupported` for more than 1 GiB in one buffer, or more than
  ///   16,384 buffers; what ``SubmissionRing/init(entries:)`` throws. Nothing is pinned then,
  ///   and no page was opened but where that could not be told beforehand (<doc:Pins#Refusals-and-dirty-sets>).
  public init(_ region: Region, _ ranges: [Range<Int>], entries: Int = 64) throws(PinError) {
    guard !ranges.isEmpty else { throw PinError(.invalidArgument, operation: "register buffers", advice: "Name a range.") }
    // Before the first page is opened: what is refused leaves nothing in anybody's set.
    for range in ranges { try region.requirePinnable(range, [.write, .longTerm]) }
    try Self.requireRoom(region, ranges)
    var ring = try SubmissionRing(entries: entries)
    try Self.requireLockable(&ring, Self.leastLocked(region, ranges), region)
    var memory: [AddressRange] = []
    var pins: [KeptPin] = []
    for range in ranges {
      let pin = try region.pinWhole(range, [.write, .longTerm])
      memory.append(AddressRange(start: pin.start, count: pin.byteCount))
      pins.append(KeptPin(pin))
    }
    try Self.register(&ring, memory, region, ranges)
    registration = FixedRegistration(ring, pins, of: region)
    self.region = region
    self.ranges = ranges
    self.memory = memory
  }

  /// The kernel's limits on buffers, and on what a process without CAP_IPC_LOCK may lock, as far as it can be told.
  private static func requireRoom(_ region: Region, _ ranges: [Range<Int>]) throws(PinError) {
    let largest = ranges.map(\.count).max() ?? 0
    guard ranges.count <= 16_384, largest <= (1 << 30) / region.pageSize else {
      throw PinError(
        .unsupported, operation: "io_uring_register_buffers", range: region.addresses,
        advice: "The kernel takes 16,384 buffers of 1 GiB each at most: register fewer or smaller ranges.")
    }
  }

  /// In bytes: what any kernel counts at least. A page that several buffers have counts for each. Of a huge page all pages count, and once:
  /// for each buffer (Linux 6.18), or for all of a ring (Linux 6.1).
  static func leastLocked(_ region: Region, _ ranges: [Range<Int>]) -> Int {
    switch region.backing.kind {
    case .pool(.never), .anonymous(.never): return ranges.reduce(0) { $0 + $1.count } * region.pageSize
    default: break
    }
    var (pages, end) = (0, 0)
    for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) where range.upperBound > end {
      pages += range.upperBound - max(end, range.lowerBound)
      end = range.upperBound
    }
    return pages * region.pageSize
  }

  /// Whether the process may lock so much beside what it has locked, and what other processes of the user have: nothing says how much that
  /// is, but the kernel itself. So it is asked with other memory, which no set is of: a little, many times over, that is let go of at once.
  private static func requireLockable(_ ring: inout SubmissionRing, _ total: Int, _ region: Region) throws(PinError) {
    guard let limit = Memory.lockLimit else { return }
    // With CAP_IPC_LOCK there is none, and what is beyond it shows that.
    let count = min(total, min(limit, 1 << 46) / Memory.pageSize * Memory.pageSize + Memory.pageSize)
    let piece = min(count, max(trialSize, (count / 16_384 + Memory.pageSize) & ~(Memory.pageSize - 1)))
    let memory = try Mapping(count: piece)
    // Of a folio the kernel counts all pages, and once.
    try? Memory.advise(memory.range, .noHugePages)
    let pieces = stride(from: 0, to: count, by: piece).map { start in
      AddressRange(start: memory.range.start, count: min(piece, count - start))
    }
    let result = ring.registerBuffers(pieces)
    if result >= 0 { return try ring.unregisterBuffers() }
    if Errno(rawValue: CInt(-result)) == .noMemory { throw notLockable(total, region.addresses) }
  }

  /// In bytes.
  private static let trialSize = 64 * Memory.pageSize

  private static func notLockable(_ count: Int, _ range: AddressRange) -> PinError {
    PinError(
      .limitReached, operation: "io_uring_register_buffers", errno: .noMemory, range: range,
      advice:
        "\(count >> 10) KiB cannot be locked: raise RLIMIT_MEMLOCK (`ulimit -l`), give the process CAP_IPC_LOCK, or register less. With either, the machine has no memory left."
    )
  }

  /// The kernel takes pages through the region's own mapping where the memory has no other: a collection may have protected them again, in
  /// a way that a system call is refused by.
  private static func register(
    _ ring: inout SubmissionRing, _ memory: [AddressRange], _ region: Region, _ ranges: [Range<Int>]
  ) throws(PinError) {
    var deadline = Deadline(seconds: region.space.configuration.patience)
    while true {
      let result = ring.registerBuffers(memory)
      if result >= 0 { return }
      let errno = Errno(rawValue: CInt(-result))
      if errno == .badAddress, region.frames == nil, !deadline.isOver() {
        for range in ranges { for page in range { try region.touch(page) } }
        continue
      }
      if errno == .noMemory { throw notLockable(memory.reduce(0) { $0 + $1.count }, memory[0]) }
      throw .kernel(result, "io_uring_register_buffers", memory[0])
    }
  }

  /// Waits for what is in flight, unregisters the buffers, and then unpins the pages.
  ///
  /// - Throws: ``PinError``, with everything let go of all the same. Where other code closed the ring's number (`.descriptorLost`), what is in
  ///   flight is waited for no longer than 10 s: if it has not ended by then, such as a read of a pipe that nobody writes to, the pages stay
  ///   pinned for good, and in every collection.
  public consuming func close() throws(PinError) { try registration.end() }
}

final class KeptPin {
  let pin: Pin
  init(_ pin: consuming Pin) { self.pin = pin }
}

/// A ring with registered buffers, and the pins that last as long.
final class FixedRegistration {
  /// Only its noncopyable owner reaches it, and all of that owner's operations are exclusive: looking again would cost each of them twice.
  @exclusivity(unchecked) var ring: SubmissionRing
  private var pins: [KeptPin]
  private let region: Region

  init(_ ring: consuming SubmissionRing, _ pins: [KeptPin], of region: Region) {
    unsafe self.ring = ring
    self.region = region
    self.pins = pins
  }

  deinit { try? end() }

  func end() throws(PinError) {
    if pins.isEmpty { return }
    // In this order: what the kernel has pinned is pinned here as well.
    defer { letGo() }
    do throws(PinError) { try finish() } catch {
      // The mappings keep a ring alive whose number is lost, and what it has begun goes on.
      unsafe ring.settle()
      throw error
    }
  }

  private func letGo() {
    if unsafe ring.inFlight > 0, region.isOfThisProcess {
      // Whoever may still write is not to be forgotten: the memory stays, and while the region is there it cannot go, and says why.
      for pin in pins { _ = unsafe Unmanaged.passRetained(pin) }
      region.space.configuration.logger.error(
        "operations on fixed buffers of \(region.addresses) have not ended, and cannot be waited for: their pages stay pinned"
      )
    }
    pins = []
  }

  private func finish() throws(PinError) {
    while unsafe ring.inFlight > 0 {
      TestHooks.reach(.finishingTransfers, page: unsafe ring.inFlight)
      try unsafe ring.submit(waitingFor: 1)
      while unsafe ring.nextCompletion() != nil {}
    }
    try unsafe ring.unregisterBuffers()
  }
}
