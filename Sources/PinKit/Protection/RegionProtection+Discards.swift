internal import Synchronization

extension RegionProtection {
  /// Runs `drop` as ``DropDecision/keeping(_:_:)`` says, if there is one.
  func keeping(_ pages: Range<Int>, _ drop: () throws(PinError) -> Void) throws(PinError) -> Bool {
    let raw = dropDecision.load(ordering: .acquiring)
    guard raw != 0 else {
      try drop()
      return true
    }
    let decision = unsafe Unmanaged<DropDecision>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!).takeUnretainedValue()
    return try decision.keeping(pages, drop)
  }

  /// Runs `body`, which collects, while nobody drops pages.
  func withoutDiscards<Result>(_ body: () throws(PinError) -> Result) throws(PinError) -> Result {
    _ = discardLock.lockExclusive()
    defer { discardLock.unlockExclusive() }
    return try body()
  }

  /// The same, if nobody drops pages at this moment.
  func withoutDiscardsIfFree(_ body: () -> Void) {
    guard discardLock.tryLockExclusive() else { return }
    defer { discardLock.unlockExclusive() }
    body()
  }

  /// Notes pages that have just been dropped. The shared lock makes the note whole before the next collection looks for it.
  func recordDiscard(_ pages: Range<Int>) {
    Kernel.withSignalsBlocked {
      let hold = unsafe domain.pointee.lock.lockShared()
      unsafe domain.pointee.table.discarded.insert(pages)
      _ = consume hold
    }
  }

  /// The pages among `pages` that are on record as dropped.
  func discardedPages(in pages: Range<Int>) -> Set<Int> {
    let discarded = unsafe domain.pointee.table.discarded
    return Set(pages.lazy.filter { discarded.contains($0) })
  }

  /// Takes pages off the record that were announced and not dropped. Nobody collects meanwhile: discards are held.
  func forgetDiscards(of pages: Range<Int>, butFor kept: Set<Int>) {
    // Whoever has read of it notes it with the lock shared.
    exclusive { domain in for page in pages where !kept.contains(page) { domain.table.discarded.remove(page) } }
  }

  /// Puts huge mappings back that protecting their pages has dropped.
  func restoreHugeMappings() {
    guard let frames, unsafe domain.pointee.lostHugeMappings.load(ordering: .relaxed) else { return }
    // Not beside the end of the protection: what is moved in must be registered, and mapped.
    ending.withLock { _ in
      guard slotIndex != nil, unsafe domain.pointee.lostHugeMappings.exchange(false, ordering: .relaxed) else { return }
      HugeFrames.restore(frames, self)
    }
  }

  /// Drops pages whose frames others may have too, and may get at any time; false if the region shares none.
  func leaveFrames(_ pages: Range<Int>, _ invalidation: inout Invalidation?) throws(PinError) -> Bool {
    var deadline = unsafe Deadline(domain.pointee.patience)
    var start = pages.lowerBound
    while start < pages.upperBound {
      let end = min(start + 512, pages.upperBound)
      let part = start..<end
      guard let result = Kernel.withSignalsBlocked({ unsafe leave(part, domain.pointee, &invalidation) }) else {
        return false
      }
      if UffdResult(result) == .again, !deadline.isOver() {
        // The frame that a page would go to is being given back, or somebody looks it up at this moment.
        Kernel.pause(nanoseconds: 20_000)
        continue
      }
      try PinError.check(result, "mmap", addresses)
      start = end
    }
    return true
  }

  private func leave(
    _ pages: Range<Int>, _ domain: borrowing FaultDomain, _ invalidation: inout Invalidation?
  ) -> CInt? {
    domain.lock.withShared { _ in domain.withSharing { $0.leave(pages, in: domain, &invalidation) } }
  }
}
