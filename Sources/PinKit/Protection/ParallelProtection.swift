internal import Synchronization

/// Write-protecting much memory by several threads at once.
///
/// The kernel takes its lock on the address space shared for this, and its time goes into page-table entries, one after the other: so two
/// threads halve the pause. Small work, and huge pages, are done before another thread could begin; whether there is enough left
/// to be worth one is found out on the first piece.
enum ParallelProtection {
  /// In bytes of small pages; a few milliseconds at most.
  private static let largestPiece = 32 << 20
  /// Short runs are handed out by the dozen.
  private static let runsInPiece = 64
  /// In nanoseconds: a thread is started for work of this length.
  private static let worthThread = 1e6
  private static let mostThreads = 4

  /// What the threads share.
  private final class Job: Sendable {
    let descriptor: CInt
    let pieces: [ArraySlice<AddressRange>]
    let next = Atomic<Int>(0)
    /// The first errno, or 0. Seen late, a piece is protected for nothing; the result is read when all threads have ended.
    let error = Atomic<CInt>(0)

    init(_ descriptor: CInt, _ pieces: [ArraySlice<AddressRange>]) {
      self.descriptor = descriptor
      self.pieces = pieces
    }

    /// Does one piece; false when there are none left, or the kernel refused one.
    func step() -> Bool {
      let index = next.add(1, ordering: .relaxed).oldValue
      guard index < pieces.count, error.load(ordering: .relaxed) == 0 else { return false }
      TestHooks.reach(.protectingPiece, page: index)
      for range in pieces[index] {
        let result = Uffd.protect(descriptor, range)
        guard result != .done else { continue }
        _ = error.compareExchange(expected: 0, desired: result.errno, ordering: .relaxed)
        return false
      }
      return true
    }

    func work() { while step() {} }

    /// Does all of it, and returns what went wrong.
    func run() -> UffdResult? {
      work()
      return failure
    }

    var failure: UffdResult? {
      let error = error.load(ordering: .acquiring)
      return error == 0 ? nil : UffdResult(-error)
    }
  }

  /// Protects all of `ranges`, or as many as the kernel likes; a caller that gets another result than `.done` knows nothing of any of
  /// them. Allocates: not for the fault path.
  static func protect(_ ranges: [AddressRange], descriptor: CInt) -> UffdResult {
    guard let first = ranges.first else { return .done }
    let begun = Kernel.now()
    let head = AddressRange(start: first.start, count: min(first.count, largestPiece))
    if let failure = Job(descriptor, [[head]]).run() { return failure }
    let time = Double(Kernel.now() - begun)
    let rest = Self.rest(of: ranges, behind: head.end)
    // Cut into pieces, fast work would be slow.
    let left = rest.reduce(0) { $0 + $1.count }
    guard time * Double(left) / Double(head.count) > worthThread else {
      return Job(descriptor, [rest[...]]).run() ?? .done
    }
    return protectByThreads(pieces(rest), descriptor)
  }

  private static func protectByThreads(_ pieces: [ArraySlice<AddressRange>], _ descriptor: CInt) -> UffdResult {
    let job = Job(descriptor, pieces)
    var helpers: [KernelThread] = []
    for _ in 1..<max(2, min(Kernel.processorCount, mostThreads)) {
      if let helper = start(job) { helpers.append(helper) }
    }
    job.work()
    for helper in helpers { helper.join() }
    return job.failure ?? .done
  }

  /// What of `ranges` lies at or behind an address.
  private static func rest(of ranges: [AddressRange], behind address: UInt) -> [AddressRange] {
    ranges.compactMap { range in
      range.end <= address ? nil : AddressRange(start: max(range.start, address), end: range.end)
    }
  }

  private static func pieces(_ ranges: [AddressRange]) -> [ArraySlice<AddressRange>] {
    var cut: [AddressRange] = []
    for range in ranges {
      var start = range.start
      while start < range.end {
        let end = min(range.end, start + UInt(largestPiece))
        cut.append(AddressRange(start: start, end: end))
        start = end
      }
    }
    var pieces: [ArraySlice<AddressRange>] = []
    var first = 0
    var bytes = 0
    for index in cut.indices {
      bytes += cut[index].count
      if bytes >= largestPiece || index - first + 1 == runsInPiece || index == cut.count - 1 {
        pieces.append(cut[first...index])
        first = index + 1
        bytes = 0
      }
    }
    return pieces
  }

  /// `nil` where there can be no thread: then the others do the work.
  private static func start(_ job: Job) -> KernelThread? {
    let context = unsafe Unmanaged.passRetained(job).toOpaque()
    do throws(PinError) {
      return try unsafe KernelThread(
        name: "pinkit-protect", context: context,
        body: { unsafe Unmanaged<Job>.fromOpaque($0!).takeUnretainedValue().work() },
        onExit: { unsafe Unmanaged<Job>.fromOpaque($0!).release() })
    } catch {
      unsafe Unmanaged<Job>.fromOpaque(context).release()
      return nil
    }
  }
}
