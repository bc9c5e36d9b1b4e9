internal import Synchronization

/// Protecting pool memory on huge pages.
///
/// `UFFDIO_WRITEPROTECT` splits the huge mapping of shared memory, for good: the protection sits in 4 KiB entries. So huge runs are protected by
/// *not being mapped*: the region is registered for minor faults too (a page that is there and not mapped), and their mapping is
/// dropped. That takes less than a millisecond for 2 GiB, and every access traps until it is resolved.
///
/// Soon after, the watchdog puts huge mappings back that can be read and not written. A fresh mapping of the same frames is prepared
/// elsewhere, where nobody can reach it: registered for write protection, which makes the kernel map read-only, read in, then registered
/// for minor faults; and moved over the pages in one step, which keeps the registration. A write to such a huge page makes the kernel
/// drop its mapping, and then it is a minor fault.
enum HugeFrames {
  static let size = 2 << 20
  static var pages: Int { size / Memory.pageSize }

  /// Protects `range`, of which huge runs lose their mapping. Under the exclusive lock; false if the kernel asked to try again.
  static func protect(_ range: AddressRange, in domain: borrowing FaultDomain) throws(PinError) -> Bool {
    var huge: [AddressRange] = []
    try PageMap().scan(range, PageMap.Query(required: .huge, returned: .huge)) { run, _ in huge.append(run) }
    if huge.isEmpty { return try protectEntries(range, in: domain) }
    var failure: PinError?
    domain.withFrames { frames in
      do throws(PinError) { try frames.mapDirectly() } catch { failure = error }
    }
    if let failure { throw failure }
    guard try trapMinorFaults(in: domain) else { return false }
    // From here on whatever is not mapped cannot be mapped without us.
    domain.lostHugeMappings.store(true, ordering: .relaxed)
    for run in huge { try PinError.check(domain.dropMapping(run), "madvise(dontNeed)", run) }
    Alarm.ring(domain.alarm)
    return try protect(gapsOf: huge, in: range, domain)
  }

  /// Protects a region that nobody has touched yet: its pages trap because they are not mapped; where the file has a hole, and nothing
  /// would trap, by marks.
  static func protectUnmapped(_ frames: RegionFrames, in domain: borrowing FaultDomain) throws(PinError) -> Bool {
    try frames.mapDirectly()
    guard try trapMinorFaults(in: domain) else { return false }
    // Under mlockall(MCL_FUTURE) the kernel has mapped all of it.
    try PinError.check(domain.dropMapping(domain.addresses), "madvise(dontNeed)", domain.addresses)
    domain.lostHugeMappings.store(true, ordering: .relaxed)
    Alarm.ring(domain.alarm)
    var data: [AddressRange] = []
    for run in unsafe try frames.pool.populatedRuns(of: frames.base.pointee) { data.append(domain.addresses(of: run)) }
    guard try protect(gapsOf: data, in: domain.addresses, domain) else { return false }
    // Pieces of other extents are few, and small pages.
    var isDone = true
    try unsafe frames.forEachPiece { run, _ throws(PinError) in
      if try !protectEntries(domain.addresses(of: run), in: domain) { isDone = false }
    }
    return isDone
  }

  private static func protect(
    gapsOf runs: [AddressRange], in range: AddressRange, _ domain: borrowing FaultDomain
  ) throws(PinError) -> Bool {
    var start = range.start
    for run in runs {
      let gap = AddressRange(start: start, end: max(start, run.start))
      if !gap.isEmpty, try !protectEntries(gap, in: domain) { return false }
      start = max(start, run.end)
    }
    let rest = AddressRange(start: start, end: range.end)
    if rest.isEmpty { return true }
    return try protectEntries(rest, in: domain)
  }

  private static func protectEntries(_ range: AddressRange, in domain: borrowing FaultDomain) throws(PinError) -> Bool {
    try domain.settle(domain.protect(range), "UFFDIO_WRITEPROTECT", range)
  }

  private static func trapMinorFaults(in domain: borrowing FaultDomain) throws(PinError) -> Bool {
    if domain.hasMinorFaults.load(ordering: .relaxed), !domain.needsRegistration.load(ordering: .relaxed) { return true }
    // First: who traps finds that it may be for that.
    domain.needsRegistration.store(true, ordering: .sequentiallyConsistent)
    domain.hasMinorFaults.store(true, ordering: .sequentiallyConsistent)
    let result = domain.register(domain.addresses, [.writeProtect, .minor])
    guard try domain.settle(result, "UFFDIO_REGISTER", domain.addresses) else { return false }
    domain.needsRegistration.store(false, ordering: .sequentiallyConsistent)
    return true
  }

  // MARK: Mapping huge pages again

  /// How much is mapped again under one hold of the lock.
  private static var mostPages: Int { 128 * pages }

  /// Maps what can be mapped by huge pages, read-only, a part at a time. On the watchdog's thread.
  static func restore(_ frames: RegionFrames, _ protection: RegionProtection) {
    var start = 0
    while start < frames.table.pageCount {
      var end = min(start + mostPages, frames.table.pageCount)
      protection.exclusive { domain in
        // What is moved is registered before that, with one descriptor.
        end = min(end, domain.together(with: start).upperBound)
        guard domain.failure.load(ordering: .relaxed) == 0, domain.hasMinorFaults.load(ordering: .relaxed) else { return }
        for run in intactRuns(of: start..<end, frames) {
          // What fails here costs time later, nothing else: the pages are mapped one by one when they are read.
          try? restore(run, frames, domain)
        }
      }
      start = end
    }
  }

  /// Runs of whole huge pages of which no page has left the base or may be written.
  private static func intactRuns(of range: Range<Int>, _ frames: RegionFrames) -> [Range<Int>] {
    var runs: [Range<Int>] = []
    var block = range.lowerBound
    while block + pages <= range.upperBound {
      let next = block + pages
      let isIntact =
        frames.broken.isEmpty(in: block..<next) && frames.table.open.isEmpty(in: block..<next)
        && !(frames.table.hasDeniedPages)
      if isIntact {
        if let last = runs.last, last.upperBound == block {
          runs[runs.count - 1] = last.lowerBound..<next
        } else {
          runs.append(block..<next)
        }
      }
      block = next
    }
    return runs
  }

  private static func restore(_ run: Range<Int>, _ frames: RegionFrames, _ domain: borrowing FaultDomain) throws(PinError) {
    let mapping = unsafe try frames.pool.makeMapping(of: run, in: frames.base.pointee)
    let made = mapping.keep()
    // What has moved away leaves room behind that others map into at once: only what is still ours is unmapped.
    var rest = made
    defer { if !rest.isEmpty { Mapping.unmap(rest) } }
    try? Memory.advise(made, .hugePages)
    try Memory.advise(made, .dontFork)
    guard domain.register(made, .writeProtect, movingTo: run.lowerBound) == .done else { return }
    // Under mlockall(MCL_FUTURE) it was read in before that, and can be written.
    try PinError.check(domain.dropMapping(made), "madvise(dontNeed)", made)
    try Memory.advise(made, .populateRead)
    guard domain.register(made, [.writeProtect, .minor], movingTo: run.lowerBound) == .done else { return }
    var huge: [AddressRange] = []
    try PageMap().scan(made, PageMap.Query(required: .huge, returned: .huge)) { run, _ in huge.append(run) }
    for part in huge where part.start % UInt(size) == 0 && part.count % size == 0 {
      let target = domain.addresses(of: run).start + (part.start - made.start)
      try Remap.move(part, to: target, in: domain)
      TestHooks.reach(.moved)
      if rest.start < part.start { Mapping.unmap(AddressRange(start: rest.start, end: part.start)) }
      rest = AddressRange(start: part.end, end: made.end)
    }
  }
}

/// mremap(2) of memory whose userfaultfd wants to hear of it: the call returns only when somebody has read the message, and readers
/// stand back while the wrprotect lock is held. So a thread of its own makes the call, and this one reads.
enum Remap {
  private final class Job: Sendable {
    let from: AddressRange
    let target: UInt
    let result = Atomic<CInt>(0)
    let isDone = Atomic<Bool>(false)
    init(_ from: AddressRange, _ target: UInt) {
      self.from = from
      self.target = target
    }
  }

  static func move(_ from: AddressRange, to target: UInt, in domain: borrowing FaultDomain) throws(PinError) {
    let job = Job(from, target)
    let context = unsafe Unmanaged.passRetained(job).toOpaque()
    let thread = unsafe try start(context)
    var batch = FaultBatch()
    while !job.isDone.load(ordering: .acquiring) {
      domain.readEvents(&batch, expectsMove: true)
      Kernel.relax()
    }
    thread.join()
    try PinError.check(job.result.load(ordering: .acquiring), "mremap", from)
  }

  private static func start(_ context: UnsafeMutableRawPointer) throws(PinError) -> KernelThread {
    do throws(PinError) {
      return try unsafe KernelThread(
        name: "pinkit-remap", context: context,
        body: { context in
          let job = unsafe Unmanaged<Job>.fromOpaque(context!).takeUnretainedValue()
          job.result.store(Memory.move(job.from, to: job.target), ordering: .releasing)
          job.isDone.store(true, ordering: .releasing)
        },
        onExit: { unsafe Unmanaged<Job>.fromOpaque($0!).release() })
    } catch {
      unsafe Unmanaged<Job>.fromOpaque(context).release()
      throw error
    }
  }
}
