internal import Synchronization

/// Tracking by write faults: by handler threads, in place, or by mprotect. The fault path records what it opens; a harvest takes that
/// record and protects the pages again.
///
/// Unchecked: the session serializes all calls.
final class SynchronousMechanism: TrackingMechanism, @unchecked Sendable {
  let kind: WriteTracking.Mechanism
  let protection: RegionProtection
  let pageCount: Int
  /// The frames of a region that nobody has touched yet.
  private var unmapped: RegionFrames?
  private var isFirst = true
  /// What was dropped, or opened, since the last start began and until its moment.
  private(set) var changedWhileStarting: DirtySet

  init(
    kind: WriteTracking.Mechanism, protection: RegionProtection, pageCount: Int, unmapped: RegionFrames? = nil
  ) {
    self.unmapped = unmapped
    self.kind = kind
    self.protection = protection
    self.pageCount = pageCount
    changedWhileStarting = DirtySet(pageCount: pageCount)
  }

  func start(_ moment: ArmingMoment, armed: (borrowing FaultDomain) -> Void) throws(PinError) {
    try protection.begin(kind.delivery)
    do throws(PinError) { try protectAll(moment, armed) } catch {
      protection.end()
      throw error
    }
  }

  func stop() { protection.end() }

  func resume(_ moment: ArmingMoment, armed: (borrowing FaultDomain) -> Void) throws(PinError) {
    try protectAll(moment, armed)
  }

  private func protectAll(_ moment: ArmingMoment, _ armed: (borrowing FaultDomain) -> Void) throws(PinError) {
    let all = 0..<pageCount
    var nobodys = DirtySet(pageCount: pageCount)
    var isAhead = false
    defer { changedWhileStarting = nobodys }
    try protection.untilDone(.writeTracking, .pages(all)) { told throws(PinError) in
      guard moment == .inSlices else { return }
      isAhead = try self.protectAhead(told, &nobodys)
      if isAhead { try self.harvestAhead(told, &nobodys) }
    } _: { domain, _ throws(PinError) in
      // What was opened since is on record.
      if isAhead { return try self.harvest(in: all, &nobodys, domain, isMoment: true, armed) }
      self.forgetAll(domain, &nobodys)
      OpenPins.willClose(in: domain)
      defer { OpenPins.reopen(in: domain) }
      let done = try self.protectAll(domain)
      if done { armed(domain) }
      return done
    }
  }

  /// Nobody is owed what was open. Of what was dropped somebody may have to be told who watched in another way before.
  func forgetAll(_ domain: borrowing FaultDomain, _ dropped: inout DirtySet) {
    var runs: [Range<Int>] = []
    domain.table.discarded.drain { runs.append($0) }
    if !runs.isEmpty { dropped.formUnion(DirtySet(pageCount: pageCount, runs: runs)) }
    domain.table.forgetTold()
    domain.table.open.drain { Self.forget($0, domain.table) }
  }

  private func protectAll(_ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    // Pages that are not there trap for that, and come in protected.
    if domain.hasSource, isFirst {
      isFirst = false
      return true
    }
    // A clone that nobody has touched.
    if let frames = unmapped, kind != .mprotect, domain.mayHaveHugeFrames {
      guard try HugeFrames.protectUnmapped(frames, in: domain) else { return false }
      unmapped = nil
      return true
    }
    var rest = DirtySet(pageCount: pageCount, runs: CollectionOfOne(0..<pageCount))
    return try Self.protect(&rest, domain, kind)
  }

  func suspend() throws(PinError) {
    var rest = DirtySet(pageCount: pageCount, runs: CollectionOfOne(0..<pageCount))
    try protection.untilDone { domain throws(PinError) in
      while let run = rest.runs.first {
        let done = try Self.unprotect(run, domain, self.kind)
        if !done { return false }
        rest = DirtySet(pageCount: self.pageCount)
      }
      domain.forgetCuts()
      return true
    }
  }

  func harvest(
    into dirty: inout DirtySet, _ event: InvalidationRange.Event, _ moment: ArmingMoment,
    armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) {
    var taken = dirty
    defer { dirty = taken }
    try protection.untilDone(event, .open) { told throws(PinError) in
      if moment == .inSlices { try self.harvestAhead(told, &taken) }
    } _: { domain, _ throws(PinError) in
      try self.harvest(in: 0..<self.pageCount, &taken, domain, isMoment: moment != .notNeeded, armed)
    }
    // Nothing that was written would be on record, and nothing to be protected again.
    try protection.requireWatched("collect")
  }

  // MARK: Under the exclusive lock

  /// Takes the pages of the record that lie in `pages`, and protects them again. Of the whole region, also those that were dropped.
  ///
  /// - Returns: False if the kernel asked to try again; then what is still open is on record.
  func harvest(
    in pages: Range<Int>, _ taken: inout DirtySet, _ domain: borrowing FaultDomain, isMoment: Bool,
    _ armed: (borrowing FaultDomain) -> Void
  ) throws(PinError) -> Bool {
    let table = domain.table
    var dropped: [Range<Int>] = []
    var opened = DirtySet(pageCount: pageCount)
    if pages.count == pageCount {
      table.forgetTold()
      table.discarded.drain { dropped.append($0) }
      table.open.drain { Self.take($0, table, &opened) }
    } else {
      table.open.drain(pages) { Self.take($0, table, &opened) }
    }
    let discarded = dropped.isEmpty ? DirtySet(pageCount: pageCount) : DirtySet(pageCount: pageCount, runs: dropped)
    if isMoment {
      OpenPins.willClose(in: domain)
    } else {
      let staying = OpenPins.staying(of: dropped.isEmpty ? opened : opened.subtracting(discarded), in: domain)
      if !staying.isEmpty {
        taken.formUnion(staying)
        Self.putBack(staying, table)
        opened = opened.subtracting(staying)
      }
    }
    defer { if isMoment { OpenPins.reopen(in: domain) } }
    let all = dropped.isEmpty ? opened : opened.union(discarded)
    var rest = all
    // What could not be protected again stays as it was, and on record.
    func keepRest() {
      if rest.isEmpty {
        if taken.isEmpty { taken = all } else { taken.formUnion(all) }
        return
      }
      taken.formUnion(all.subtracting(rest))
      // A page that was only dropped may still be protected: were it put back as open, its next fault would find nothing to do.
      let onlyDropped = discarded.subtracting(opened)
      Self.putBack(rest.subtracting(onlyDropped), table)
      for run in onlyDropped.subtracting(all.subtracting(rest)).runs { table.discarded.insert(run) }
    }
    do throws(PinError) {
      let done = try Self.protect(&rest, domain, kind)
      keepRest()
      if done { armed(domain) }
      return done
    } catch {
      keepRest()
      throw error
    }
  }

  /// Moves a run from the page table's record into `dirty`.
  private static func take(_ run: Range<Int>, _ table: PageTable, _ dirty: inout DirtySet) {
    var start = run.lowerBound
    var isAround = false
    for page in run {
      let before = table.removeExclusively(.openAround, at: page)
      let around = before.contains(.faultAround)
      guard around != isAround else { continue }
      dirty.append(start..<page, isFaultAround: isAround)
      (start, isAround) = (page, around)
    }
    dirty.append(start..<run.upperBound, isFaultAround: isAround)
  }

  static func forget(_ run: Range<Int>, _ table: PageTable) {
    for page in run { _ = table.removeExclusively(.openAround, at: page) }
  }

  static func putBack(_ rest: DirtySet, _ table: PageTable) {
    for run in rest.runs {
      for page in run { table.insert(.open, at: page) }
      table.open.insert(run)
    }
    for run in rest.faultAroundRuns { for page in run { table.insert(.faultAround, at: page) } }
  }

  /// Protects the runs of `rest` in order, removing what is done. False if the kernel asked to try again.
  static func protect(
    _ rest: inout DirtySet, _ domain: borrowing FaultDomain, _ kind: WriteTracking.Mechanism
  ) throws(PinError) -> Bool {
    if kind != .mprotect, try !RegionProtection.registerAgain(domain) { return false }
    let runs = rest.runs
    let mayMerge = !domain.table.hasDeniedPages
    if kind != .mprotect, !domain.mayHaveHugeFrames, mayMerge, isMuch(runs) {
      guard try protectTogether(runs, domain) else { return false }
      rest.removeRuns(before: runs.count)
      return true
    }
    var index = 0
    var price = CallPrice()
    while index < runs.count {
      let (last, end) = merged(runs, from: index, gap: mayMerge ? price.pages : -1, domain.table)
      let done: Bool
      do throws(PinError) { done = try protect(last, domain, kind) } catch {
        rest.removeRuns(before: index)
        throw error
      }
      guard done else {
        rest.removeRuns(before: index)
        return false
      }
      TestHooks.reach(.protecting, page: last.lowerBound)
      price.noteCall()
      index = end
    }
    rest.removeRuns(before: runs.count)
    if kind == .mprotect { domain.forgetCuts() }
    return true
  }

  /// The run at `index` with those that follow at a distance of at most `gap` pages, and the index of the next. Not over pages that stay open
  /// (P8).
  private static func merged(
    _ runs: [Range<Int>], from index: Int, gap: Int, _ table: PageTable
  ) -> (run: Range<Int>, end: Int) {
    var end = index + 1
    var run = runs[index]
    while end < runs.count, runs[end].lowerBound - run.upperBound <= gap {
      if (run.upperBound..<runs[end].lowerBound).contains(where: { table[$0].contains(.open) }) { break }
      run = run.lowerBound..<runs[end].upperBound
      end += 1
    }
    return (run, end)
  }

  /// Whether a second thread may shorten it. Each call ends with an interrupt to every processor that runs a thread of this process: many
  /// short calls take one thread, while the others sleep, a third of the time that two threads need for them.
  private static func isMuch(_ runs: [Range<Int>]) -> Bool {
    let pages = runs.reduce(0) { $0 + $1.count }
    return pages >= 16_384 && pages >= 64 * runs.count
  }

  /// Protects all runs, or none that can be vouched for: what was protected all the same is opened again by its next fault.
  private static func protectTogether(_ runs: [Range<Int>], _ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    var ranges: [AddressRange] = []
    for run in runs { ranges.append(domain.addresses(of: run)) }
    let all = AddressRange(start: ranges[0].start, end: ranges[ranges.count - 1].end)
    return try domain.settle(ParallelProtection.protect(ranges, in: domain), "UFFDIO_WRITEPROTECT", all)
  }

  private static func protect(
    _ run: Range<Int>, _ domain: borrowing FaultDomain, _ kind: WriteTracking.Mechanism
  ) throws(PinError) -> Bool {
    if kind == .mprotect { return try protectByMprotect(run, domain) }
    let range = domain.addresses(of: run)
    // What was opened since the last time has small entries.
    if domain.mayHaveHugeFrames, run.count >= HugeFrames.pages { return try HugeFrames.protect(range, in: domain) }
    return try domain.settle(domain.protect(range), "UFFDIO_WRITEPROTECT", range)
  }

  private static func unprotect(
    _ run: Range<Int>, _ domain: borrowing FaultDomain, _ kind: WriteTracking.Mechanism
  ) throws(PinError) -> Bool {
    if kind == .mprotect {
      for part in allowedParts(of: run, domain) { try change(domain.addresses(of: part), .readWrite) }
      return true
    }
    let range = domain.addresses(of: run)
    return try domain.settle(domain.unprotect(range, wake: true), "UFFDIO_WRITEPROTECT", range)
  }

  private static func protectByMprotect(_ run: Range<Int>, _ domain: borrowing FaultDomain) throws(PinError) -> Bool {
    for part in allowedParts(of: run, domain) { try change(domain.addresses(of: part), .read) }
    return true
  }

  /// The parts of `run` that the user has not protected: their protection is the tracker's to change.
  private static func allowedParts(of run: Range<Int>, _ domain: borrowing FaultDomain) -> [Range<Int>] {
    guard domain.table.hasDeniedPages else { return [run] }
    var parts = DirtySet(pageCount: domain.table.pageCount)
    for page in run where domain.table[page].isDisjoint(with: .denied) { parts.append(page..<page + 1) }
    return parts.runs
  }

  private static func change(_ range: AddressRange, _ protection: Mapping.Protection) throws(PinError) {
    try PinError.check(Memory.protect(range, protection), "mprotect", range)
  }
}

/// What a system call of its own costs a short run, in pages that could be protected again in its place although they are protected.
///
/// A call takes half a microsecond, which is the price of eight such pages; while the process runs on other processors, which all have to be
/// interrupted, five times that.
private struct CallPrice {
  private static let calls = 64
  /// In nanoseconds a call.
  private static let dear: UInt64 = 1_500

  private(set) var pages = 6
  private var count = 0
  private var since = Kernel.now()

  mutating func noteCall() {
    count += 1
    guard count == Self.calls else { return }
    let now = Kernel.now()
    pages = (now - since) / UInt64(Self.calls) > Self.dear ? 32 : 6
    (count, since) = (0, now)
  }
}
