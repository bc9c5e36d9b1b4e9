public import Logging
internal import Synchronization

/// The regions that PinKit manages for a program, the threads that serve their faults, and their statistics.
///
/// A program needs one; several are independent of each other. Managed memory is not inherited across `fork()` unless
/// ``Configuration/inheritsAcrossFork`` says so: a child that touches it gets SIGSEGV, and every call on it there throws
/// `.notInherited`.
public final class AddressSpace: Sendable {
  /// What happens when faults of a region can no longer be served: its handler died, its descriptor was closed, the kernel
  /// refused for good (K3).
  public enum FailurePolicy: Sendable, Hashable {
    /// Log the cause and abort the process. The default: nothing is ever taken for clean that was not watched.
    case terminate
    /// Log the cause, let the threads that wait go on without protection, and make every later call on the region's trackers throw
    /// `.handlerLost`. Memory whose bytes would be wrong without protection (of a store, or with sealed pages) becomes inaccessible.
    case failRegion
  }

  public struct Configuration: Sendable {
    /// How many threads serve faults at most; they are shared by all regions. There are two, and more while those have their hands full: a
    /// thread that had nothing to do for ten seconds goes again. As many as processors, at least two and at most sixteen, unless set.
    public var readerCount = max(2, min(Kernel.processorCount, 16))
    public var failurePolicy = FailurePolicy.terminate
    /// Whether a child of `fork()` gets the memory, unprotected and untracked: a copy of its own where the memory is private, the
    /// very same frames where it is shared (`.pool`, `.hugetlb`).
    public var inheritsAcrossFork = false
    /// How long the kernel may keep asking to retry, a reader may work on one batch, or a store may take to answer before that is reported or
    /// counts as lost, in seconds of time in which the process could run (K5).
    public var patience = 10.0
    public var logger = Logger(label: "pinkit")
    /// How often the statistics are handed to swift-metrics, in seconds; 0: never. Costs nothing in the fault path.
    public var metricsInterval = 1.0
    /// How much is protected under one hold of the wrprotect lock before the moment of a snapshot.
    var armingSlice = ArmingSlice(pages: 2_048, mostPages: 32_768, runs: 64)
    /// How large regions are cut, so that writers on many processors do not wait for one another.
    var slices = RegionSlices.automatic
    /// After how many waits of half a second in vain a thread goes.
    var longestIdle = 20
    public init() {}
  }

  public let configuration: Configuration
  /// Preallocated; incremented in the fault path.
  let counters = SpaceCounters()
  let services = Attachments()
  private let regions = Mutex<[UInt64: WeakRegion]>([:])
  private let isClosed = Atomic<Bool>(false)
  private let forkGeneration = Kernel.forkGeneration

  private struct WeakRegion { weak var region: Region? }

  /// Starts nothing yet: threads and descriptors come with the first region that needs them.
  public init(configuration: Configuration = .init()) throws(PinError) {
    guard configuration.readerCount >= 1, configuration.readerCount <= 64 else {
      throw PinError(
        .invalidArgument, operation: "AddressSpace", advice: "readerCount must be between 1 and 64.")
    }
    guard configuration.patience > 0 else {
      throw PinError(.invalidArgument, operation: "AddressSpace", advice: "patience must be above 0 seconds.")
    }
    guard configuration.metricsInterval >= 0 else {
      throw PinError(
        .invalidArgument, operation: "AddressSpace", advice: "metricsInterval must not be below 0 seconds.")
    }
    try Kernel.watchForks()
    // Early: the program may lock itself in later. Without it, what needs it says so.
    _ = try? ProcessPageMap.file()
    var configuration = configuration
    configuration.slices = configuration.slices.settled
    self.configuration = configuration
  }

  deinit {
    for service in services.all(as: (any AddressSpaceService).self) { service.shutDown() }
    counters.deallocate()
  }

  /// False in a child of `fork()`.
  @inline(__always) var isOfThisProcess: Bool { forkGeneration == Kernel.forkGeneration }

  /// Throws if the space was closed, or if this process is a child of the one that made it.
  func requireOpen(_ operation: String) throws(PinError) {
    if !isOfThisProcess { throw .notInherited(operation) }
    if isClosed.load(ordering: .acquiring) { throw Self.closed(operation) }
  }

  private static func closed(_ operation: String) -> PinError {
    PinError(.unmapped, operation: operation, advice: "The address space was closed.")
  }

  func enroll(_ region: Region) throws(PinError) {
    TestHooks.reach(.enrolling)
    // Whoever closes the space marks it first, and then unmaps what it finds here.
    let isOpen = regions.withLock { regions in
      guard !isClosed.load(ordering: .sequentiallyConsistent) else { return false }
      regions[region.id] = WeakRegion(region: region)
      return true
    }
    guard isOpen else { throw Self.closed("map") }
    for service in services.all(as: (any AddressSpaceService).self) { try service.regionDidMap(region) }
  }
  func withdraw(_ id: UInt64) { _ = regions.withLock { $0.removeValue(forKey: id) } }

  private func isEnrolled(_ id: UInt64) -> Bool { regions.withLock { $0[id] != nil } }

  /// The regions that are mapped now.
  public var mappedRegions: [Region] { regions.withLock { $0.values.compactMap(\.region) } }

  /// Unmaps every region and stops the threads. Threads that wait in a fault go on first: their writes land, then the memory goes.
  ///
  /// Blocks until accesses inside `withUnsafeMutableBytes` have ended. A second call does nothing.
  ///
  /// - Parameter whilePinned: What to do if pages are pinned (P7): to fail, unless given. `.leaveFrames` leaves those of `.pool` regions to
  ///   the pins, and fails for others.
  /// - Throws: ``PinError`` `.pinned`, naming the pages of the first region that has any; `.wouldDeadlock` from inside an access to one of the
  ///   regions, or from a fault callback. Nothing has changed then.
  public func close(whilePinned: PinnedPages = .fail) throws(PinError) {
    guard isOfThisProcess else { throw .notInherited("close") }
    for region in mappedRegions { try region.requireOutside("close") }
    if isClosed.load(ordering: .acquiring) { return }
    try requireNoOrphans(whilePinned)
    // While it can still be refused without harm.
    for region in mappedRegions { try region.flushSupply() }
    var held: [Region] = []
    // Nobody pins while it is decided, and whoever closes as well finds the regions gone.
    defer { for region in held { region.pinGate.endDrop() } }
    for region in mappedRegions {
      try region.beginDrop(0..<region.pageCount, "close", whilePinned: Self.policy(whilePinned, region))
      held.append(region)
    }
    // The program may have let go of a region meanwhile.
    try requireNoOrphans(whilePinned)
    guard !isClosed.exchange(true, ordering: .sequentiallyConsistent) else { return }
    for service in services.all(as: (any AddressSpaceService).self) { service.spaceWillClose() }
    for region in mappedRegions {
      do throws(PinError) { try region.unmap(whilePinned: Self.policy(whilePinned, region)) } catch
        where error.code == .unmapped
      {
        // Another thread is at it, and may wait for an access whose faults need the threads that stop below.
        while isEnrolled(region.id) { Kernel.pause(nanoseconds: 50_000) }
      } catch {
        // A store that cannot take what has changed keeps its region, and so the space.
        isClosed.store(false, ordering: .sequentiallyConsistent)
        throw error
      }
    }
    for service in services.all(as: (any AddressSpaceService).self) { service.shutDown() }
    services.removeAll()
  }

  /// What is left of regions that are gone, for pins.
  private func requireNoOrphans(_ whilePinned: PinnedPages) throws(PinError) {
    for memory in PinnedOrphans.memory(of: self) where whilePinned != .leaveFrames || memory.frames == nil {
      if memory.isLeftToPins.load(ordering: .sequentiallyConsistent) { continue }
      while true {
        let pinned = memory.table.pinnedRuns(in: 0..<memory.table.pageCount)
        if pinned.isEmpty { break }
        if whilePinned != .wait { throw memory.pinnedError(pinned, "close") }
        Kernel.pause(nanoseconds: 50_000)
      }
    }
  }

  private static func policy(_ whilePinned: PinnedPages, _ region: Region) -> PinnedPages {
    whilePinned == .leaveFrames && region.frames == nil ? .fail : whilePinned
  }
}
