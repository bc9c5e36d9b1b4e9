internal import Synchronization

/// Keeping bytes outside of faults: before they are dropped or unmapped, and ahead of writers.
///
/// It is done as in the fault path, by the same code and in slices: the wrprotect lock shared, the pages claimed. Signals are
/// blocked meanwhile: a signal handler of this thread that writes the region would wait for a claim of its own thread.
extension SnapshotSet {
  /// In pages.
  private static let slice = 64

  /// What ``keeping(_:_:)`` asks for, of a region that has snapshots.
  func keepingOwed(_ pages: Range<Int>, _ drop: () throws(PinError) -> Void) throws(PinError) -> Bool {
    guard unsafe protection.domain.pointee.owed.load(ordering: .acquiring) != 0 else {
      try drop()
      return true
    }
    return try dropping.withLock { _ throws(PinError) in
      if keepOwed(pages) == .held { return false }
      // What a reader thread hears of it now is no news.
      unsafe announce(pages, protection.domain.pointee)
      defer {
        // The kernel drops the pages when somebody has read of it, who may get to note it later.
        settle()
        unsafe announce(0..<0, protection.domain.pointee)
      }
      try drop()
      return true
    }
  }

  private func announce(_ pages: Range<Int>, _ domain: borrowing FaultDomain) {
    domain.droppingTurns.add(1, ordering: .sequentiallyConsistent)
    domain.droppingFrom.store(pages.lowerBound, ordering: .sequentiallyConsistent)
    domain.droppingTo.store(pages.upperBound, ordering: .sequentiallyConsistent)
    domain.droppingTurns.add(1, ordering: .sequentiallyConsistent)
  }

  /// Keeps what is owed of `pages`; waits for whoever else is keeping one of them.
  func keepOwed(_ pages: Range<Int>) -> OwedBytes.Verdict {
    unsafe keepOwed(pages, in: protection.domain.pointee)
  }

  /// What is known of pages that the program may not read.
  private enum Hidden {
    /// There were none when somebody looked: whoever finds one comes again.
    case none
    /// How they can be read all the same, if they can.
    case readable(by: ProcessMemory?)
  }

  private func keepOwed(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> OwedBytes.Verdict {
    let raw = domain.owed.load(ordering: .acquiring)
    let hasHidden = domain.table.hasDeniedPages
    let verdict = keepOwed(pages, raw, hasHidden ? .readable(by: try? ProcessMemory()) : .none, in: domain)
    // The region's first page was hidden since.
    return verdict == .held && !hasHidden && domain.table.hasDeniedPages ? keepOwed(pages, in: domain) : verdict
  }

  private func keepOwed(
    _ pages: Range<Int>, _ raw: UInt, _ hidden: Hidden, in domain: borrowing FaultDomain
  ) -> OwedBytes.Verdict {
    if domain.hasSource {
      // What is in the store only must come in first, and stay until it is kept.
      let isThere = domain.withSource { $0.holdPresent(pages) }
      defer { if isThere == true { domain.withSource { $0.mayLeave() } } }
      guard isThere == true else { return .held }
      return keepPresent(pages, raw, hidden, in: domain)
    }
    return keepPresent(pages, raw, hidden, in: domain)
  }

  private func keepPresent(
    _ pages: Range<Int>, _ raw: UInt, _ hidden: Hidden, in domain: borrowing FaultDomain
  ) -> OwedBytes.Verdict {
    for run in pages.count > Self.slice ? populated(pages, raw, in: domain) : [pages] {
      var next = run.lowerBound
      while next < run.upperBound {
        let (verdict, end) = withTarget(domain) { store in
          // Another snapshot cannot have come meanwhile, only the last one gone.
          Self.identity(store) == raw
            ? keepSlice(next..<run.upperBound, store, domain, hidden, waits: true) : (.kept, run.upperBound)
        }
        if verdict == .held { return .held }
        next = end
      }
    }
    return .kept
  }

  static func identity(_ store: OwedBytes) -> UInt { UInt(bitPattern: unsafe Unmanaged.passUnretained(store).toOpaque()) }

  // MARK: The sweep

  /// The runs of pages that hold something, for a sweep on behalf of `store`.
  func populated(for store: CaptureStore) -> [Range<Int>] {
    sweeping.withLock { isOver in
      isOver ? [] : unsafe populated(0..<store.pageCount, Self.identity(store), in: protection.domain.pointee)
    }
  }

  /// Keeps a slice of `pages`. Returns where to go on; `nil` when there is no more to do for `store`.
  func sweep(_ store: CaptureStore, _ pages: Range<Int>) -> Int? {
    sweeping.withLock { isOver in
      if isOver { return nil }
      return unsafe sweep(store, pages, in: protection.domain.pointee)
    }
  }

  private func sweep(_ store: CaptureStore, _ pages: Range<Int>, in domain: borrowing FaultDomain) -> Int? {
    let (verdict, end) = withTarget(domain) { target in
      target === store && !store.isLost && domain.failure.load(ordering: .acquiring) == 0
        ? keepSlice(pages, store, domain, .none, waits: false) : (.held, 0)
    }
    return verdict == .held ? nil : end
  }

  // MARK: Slices

  /// Runs `body` with the newest store, which stays the newest until it returns; (.kept, .max) without one.
  private func withTarget(
    _ domain: borrowing FaultDomain, _ body: (CaptureStore) -> (OwedBytes.Verdict, Int)
  ) -> (OwedBytes.Verdict, Int) {
    Kernel.withSignalsBlocked {
      let hold = domain.lock.lockShared()
      let result = domain.withOwedBytes { body(unsafe unsafeDowncast($0, to: CaptureStore.self)) } ?? (.kept, .max)
      _ = consume hold
      return result
    }
  }

  /// Keeps the first pages of `pages` that are owed. Returns where to go on.
  ///
  /// A thread that were to end in here would leave its claims behind, with the wrprotect lock held shared, and as a sweep with `sweeping`
  /// locked: a mutex that only the thread unlocks that locked it, so that no sweep in its place could take over what it had, nor could the
  /// snapshot be closed. Up to 64 pages would keep their writers waiting, and every exclusive operation of the region. It is not made safe,
  /// as nothing ends a thread here: no code of the program's runs (subscribers, stores, sealers and callbacks are not called, and nothing is
  /// logged), signals are blocked, and no call of the C library is a cancellation point. What is left, a system call that a filter answers
  /// by killing the thread, runs no handler of the thread's end either: then the watchdog says that the sweep is stuck, and that writers
  /// wait for it (K3).
  private func keepSlice(
    _ pages: Range<Int>, _ store: CaptureStore, _ domain: borrowing FaultDomain, _ hidden: Hidden, waits: Bool
  ) -> (OwedBytes.Verdict, Int) {
    let table = domain.table
    let readsDirectly = domain.hasSeals || domain.hasSource
    let first = store.captured.first(in: pages, isSet: false)
    guard first < pages.upperBound else { return (.kept, pages.upperBound) }
    let before = waits ? table.claim(first) : table.tryClaim(first)
    // A sweep leaves what is not there: nobody writes it unseen.
    if !waits, !before.contains(.claimed), domain.withSource({ $0.isPresent(first) }) == false {
      table.releaseClaim(first)
      return (.kept, first + 1)
    }
    // Whoever has it keeps it.
    if !waits, before.contains(.claimed) { return (.kept, first + 1) }
    // Where the pool's own mapping is read, it does not matter what rights the region has.
    if before.contains(.readDenied), !readsDirectly {
      defer { table.releaseClaim(first) }
      if !waits { return (.kept, first + 1) }
      guard case .readable(let memory) = hidden else { return (.held, first) }
      return (store.keep(unreadable: first, memory, in: domain), first + 1)
    }
    var end = first + 1
    let limit = min(pages.upperBound, first + Self.slice)
    while end < limit, !store.captured.contains(end) {
      let before = table.tryClaim(end)
      if before.contains(.claimed) { break }
      if (before.contains(.readDenied) && !readsDirectly) || domain.withSource({ $0.isPresent(end) }) == false {
        table.releaseClaim(end)
        break
      }
      end += 1
    }
    let verdict = store.keep(first..<end, in: domain, isAhead: !waits)
    for page in first..<end { table.releaseClaim(page) }
    return (verdict, end)
  }

  /// The parts of `pages` that hold something; of the others it is on record that they hold zeros. All of them if that cannot be
  /// told. `owner` is the store that has been the newest since before the call.
  ///
  /// A page that had none when it was looked at, and was owed then, held zeros at the moment of the snapshot, as nobody can have
  /// written it in between. It may be written, and kept, while it is put on record here: that copies zeros too.
  private func populated(_ pages: Range<Int>, _ owner: UInt, in domain: borrowing FaultDomain) -> [Range<Int>] {
    // From before looking: whoever hears that pages were removed must know that this may have seen them without bytes.
    domain.keepsBegun.add(1, ordering: .sequentiallyConsistent)
    defer { domain.keepsEnded.add(1, ordering: .sequentiallyConsistent) }
    guard isPrivateAnonymous, var present = presentPages(pages, in: domain) else { return [pages] }
    // A guard page may have had bytes: it is no page of zeros.
    if let guards = domain.guardPages(in: [pages]) { present = present.union(guards) }
    let absent = DirtySet(pageCount: present.pageCount, runs: CollectionOfOne(pages)).subtracting(present)
    for run in absent.runs {
      _ = withTarget(domain) { store in
        if Self.identity(store) == owner, domain.failure.load(ordering: .acquiring) == 0 { store.keepZeros(run) }
        return (.kept, 0)
      }
    }
    return present.runs
  }

  /// The pages that have bytes (K4), and not just the kernel's page of zeros. Private anonymous memory only.
  func presentPages(_ pages: Range<Int>, in domain: borrowing FaultDomain) -> DirtySet? {
    var found = DirtySet(pageCount: domain.table.pageCount)
    let query = PageMap.Query(required: .zeroFrame, inverted: .zeroFrame)
    do throws(PinError) {
      try PageMap().scanPopulated(domain.addresses(of: pages), query, isPrivateAnonymous: true) { run in
        found.append(domain.page(at: run.start)..<domain.page(at: run.end - 1) + 1)
      }
    } catch { return nil }
    return found
  }

  // MARK: Releasing

  /// Owes `pages` of `store` to nobody any more; older snapshots keep what they need.
  func release(_ pages: Range<Int>, of store: CaptureStore) {
    whileOldest(store) { unsafe release(pages, of: store, in: protection.domain.pointee) }
  }

  private func release(_ pages: Range<Int>, of store: CaptureStore, in domain: borrowing FaultDomain) {
    var next = pages.lowerBound
    while next < pages.upperBound {
      let run = next..<min(pages.upperBound, next + Self.slice)
      let (_, end) = withTarget(domain) { target in
        // Only the newest store is written, by whoever has claimed the page.
        guard target === store else { return (.kept, .max) }
        var end = run.lowerBound
        _ = domain.table.claim(end)
        repeat { end += 1 } while end < run.upperBound && !domain.table.tryClaim(end).contains(.claimed)
        store.release(run.lowerBound..<end)
        for page in run.lowerBound..<end { domain.table.releaseClaim(page) }
        return (.kept, end)
      }
      if end == .max { return store.release(next..<pages.upperBound) }
      next = end
    }
  }
}
