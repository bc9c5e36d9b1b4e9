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
    let pieces: [ArraySlice<SlicePart>]
    let next = Atomic<Int>(0)
    /// The first errno, or 0. Seen late, a piece is protected for nothing; the result is read when all threads have ended.
    let error = Atomic<CInt>(0)

    init(_ pieces: [ArraySlice<SlicePart>]) { self.pieces = pieces }

    /// Does one piece; false when there are none left, or the kernel refused one.
    func step() -> Bool {
      let index = next.add(1, ordering: .relaxed).oldValue
      guard index < pieces.count, error.load(ordering: .relaxed) == 0 else { return false }
      TestHooks.reach(.protectingPiece, page: index)
      for part in pieces[index] {
        let result = Uffd.protect(part.descriptor, part.range)
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
  static func protect(_ ranges: [AddressRange], in domain: borrowing FaultDomain) -> UffdResult {
    let result = protect(domain.parts(of: ranges))
    return result == .refused(errno: UffdResult.badDescriptor) && domain.useSpareDescriptors(0..<domain.table.pageCount)
      ? .again : result
  }

  private static func protect(_ parts: [SlicePart]) -> UffdResult {
    guard let first = parts.first else { return .done }
    let begun = Kernel.now()
    let head = first.cut(at: first.range.start + UInt(min(first.range.count, largestPiece))).head
    if let failure = Job([[head]]).run() { return failure }
    let time = Double(Kernel.now() - begun)
    let rest = Self.rest(of: parts, behind: head.range.end)
    // Cut into pieces, fast work would be slow.
    let left = rest.reduce(0) { $0 + $1.range.count }
    guard time * Double(left) / Double(head.range.count) > worthThread else { return Job([rest[...]]).run() ?? .done }
    return protectByThreads(pieces(rest))
  }

  private static func protectByThreads(_ pieces: [ArraySlice<SlicePart>]) -> UffdResult {
    let job = Job(pieces)
    var helpers: [KernelThread] = []
    for _ in 1..<max(2, min(Kernel.processorCount, mostThreads)) {
      if let helper = start(job) { helpers.append(helper) }
    }
    job.work()
    for helper in helpers { helper.join() }
    return job.failure ?? .done
  }

  /// What of `parts` lies at or behind an address.
  private static func rest(of parts: [SlicePart], behind address: UInt) -> [SlicePart] {
    parts.compactMap { $0.range.end <= address ? nil : $0.cut(at: max($0.range.start, address)).rest }
  }

  private static func pieces(_ parts: [SlicePart]) -> [ArraySlice<SlicePart>] {
    var cut: [SlicePart] = []
    for part in parts {
      var rest = part
      while !rest.range.isEmpty {
        let (head, tail) = rest.cut(at: rest.range.start + UInt(min(rest.range.count, largestPiece)))
        cut.append(head)
        rest = tail
      }
    }
    var pieces: [ArraySlice<SlicePart>] = []
    var first = 0
    var bytes = 0
    for index in cut.indices {
      bytes += cut[index].range.count
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
