internal import Synchronization

/// Sealing.
extension SealedPages {
  /// In pages: what is sealed in one go, all of it or none.
  static let chunk = 256

  func seal(_ pages: Range<Int>) throws(PinError) {
    // What broke away from others left a frame behind with the same bytes.
    defer { frames.pool.buryDead() }
    if sealed.first(in: pages, isSet: false) == pages.upperBound { return }
    // A page that is being dropped must not be sealed meanwhile, and who subscribes waits until this is over.
    try protection.withoutDiscards { () throws(PinError) in
      // One for all of them (N10).
      var invalidation = try protection.start(.seal, pages)
      defer { invalidation?.end() }
      var next = pages.lowerBound
      while next < pages.upperBound {
        let part = next..<min(pages.upperBound, next + Self.chunk)
        next = part.upperBound
        if sealed.first(in: part, isSet: false) == part.upperBound { continue }
        try sealChunk(part, &invalidation)
      }
    }
  }

  /// Seals those of `pages` that nobody uses, if nobody has to be waited for.
  private func trySeal(_ pages: Range<Int>) {
    protection.withoutDiscardsIfFree {
      guard case .begun(var invalidation) = try? protection.tryStart(.seal, pages) else { return }
      defer { invalidation?.end() }
      // Together, as dropping a mapping costs more than sealing a page; if one of them is in use, one by one.
      do throws(PinError) { try sealChunk(pages, &invalidation) } catch {
        guard error.code == .busy else { return }
        for page in pages { try? sealChunk(page..<page + 1, &invalidation) }
      }
    }
  }

  private func sealChunk(_ pages: Range<Int>, _ invalidation: inout Invalidation?) throws(PinError) {
    while true {
      let outcome = shared { domain in
        for page in pages { _ = table.claim(page) }
        defer { for page in pages { table.releaseClaim(page) } }
        // A page that went to another frame since is mapped without a trap: dropped, it would be read as it is.
        if domain.needsRegistration.load(ordering: .sequentiallyConsistent) { return Outcome.unregistered }
        if let error = sealClaimed(pages, &invalidation, domain) { return .failed(error) }
        return .done
      }
      switch outcome {
      case .done: return
      case .failed(let error): throw error
      case .unregistered: try protection.untilDone { domain throws(PinError) in try RegionProtection.registerAgain(domain) }
      }
    }
  }

  private enum Outcome {
    case done, unregistered
    case failed(PinError)
  }

  /// Freezes all, or none; then nobody else can reach a byte of them.
  private func sealClaimed(
    _ pages: Range<Int>, _ invalidation: inout Invalidation?, _ domain: borrowing FaultDomain
  ) -> PinError? {
    if let failure = protection.failure { return failure }
    // A snapshot that comes in between needs the lock alone.
    let moments = openMoments()
    var frozen: [Int] = []
    frozen.reserveCapacity(pages.count)
    for page in pages where !sealed.contains(page) && !poisoned.contains(page) {
      if let reason = freeze(page, moments) {
        for page in frozen { thaw(page) }
        return PinError(
          .busy, operation: "seal page \(page)", range: pageAddresses(page), advice: "\(reason) Nothing has changed.")
      }
      frozen.append(page)
    }
    defer { for page in frozen { thaw(page) } }
    guard let first = frozen.first, let last = frozen.last else { return nil }
    let span = first..<last + 1
    // A region that fails is closed if this was true by then, and left as it is otherwise: one of the two sees the other.
    hasEverSealed.store(true, ordering: .sequentiallyConsistent)
    if let failure = protection.failure { return failure }
    table.clear(span)
    defer { table.set(span) }
    // The kernel waits until no processor has the old entries any more.
    let result = domain.dropMapping(domain.addresses(of: span))
    if result != 0 { return .kernel(Int(result), "madvise", domain.addresses(of: span)) }
    invalidation?.invalidateRange(span)
    TestHooks.reach(.sealing, page: first)
    for page in frozen {
      do throws(PinError) { try transform(page) } catch { return error }
    }
    return nil
  }

  /// `nil`, or who needs the page as it is.
  private func freeze(_ page: Int, _ moments: [SealMoment]) -> String? {
    if moments.contains(where: { !$0.sealed.contains(page) }) {
      return "An open snapshot has, or is owed, its plain bytes: close the snapshot first."
    }
    let extent = unsafe frames.extent(of: page)
    guard unsafe extent.pointee.lock(page, patience: 0) else { return "Its frame is locked." }
    let counts = unsafe extent.pointee.counts(page)
    if table[page].isPinned || counts.mayBePinned {
      unsafe extent.pointee.unlock(page)
      return "It is pinned, or I/O is pending: unpin it first."
    }
    guard unsafe extent.pointee.freeze(page, expecting: 1) else {
      unsafe extent.pointee.unlock(page)
      return "Somebody has a reference to its frame: a lookup, or a clone that shares it."
    }
    return nil
  }

  private func thaw(_ page: Int) {
    let extent = unsafe frames.extent(of: page)
    unsafe extent.pointee.unfreeze(page)
    unsafe extent.pointee.unlock(page)
  }

  private func transform(_ page: Int) throws(PinError) {
    let identity = nextIdentity(page)
    unsafe try sealer.seal(bytes(page), identity: identity, record: record(page))
    setIdentity(identity, of: page)
    unsafe frames.extent(of: page).pointee.update(page) { word in
      var word = word
      word.flags.insert(.sealed)
      return word
    }
    sealed.insert(page..<page + 1)
    used.remove(page..<page + 1)
    idle.remove(page..<page + 1)
    counters.add(.sealedPages)
  }

  // MARK: By time

  /// Seals what was not touched for a while. A page is taken out of the page table first: an access then costs a fault and no more, and
  /// says that it is in use. On the watchdog's thread: it waits for nobody.
  func sealIdle() {
    let unused = used.pages(in: 0..<pageCount)
    for run in idle.pages(in: 0..<pageCount).runs {
      var next = run.lowerBound
      while next < run.upperBound {
        let isOver = idling.withLock { isOver in
          if !isOver { next = sealCold(next..<min(run.upperBound, next + Self.chunk)) }
          return isOver
        }
        if isOver { return }
      }
    }
    frames.pool.noteDead()
    for run in unused.runs {
      for first in stride(from: run.lowerBound, to: run.upperBound, by: Self.chunk) {
        if !unmap(first..<min(run.upperBound, first + Self.chunk)) { return }
      }
    }
  }

  /// Seals the first pages of `pages` that no secondary MMU has used lately, all that lie together. Returns where to go on.
  private func sealCold(_ pages: Range<Int>) -> Int {
    var end = pages.lowerBound
    while end < pages.upperBound, !isYoung(end) { end += 1 }
    if end > pages.lowerBound { trySeal(pages.lowerBound..<end) }
    // The one at the end was young.
    return min(pages.upperBound, end + 1)
  }

  /// Takes those of `pages` out of the page table that are open and that nobody is at. False if the region goes.
  private func unmap(_ pages: Range<Int>) -> Bool {
    idling.withLock { isOver in
      if isOver { return false }
      shared { domain in
        var first = pages.lowerBound
        for page in pages {
          if table.tryClaim(page).contains(.claimed) {
            dropClaimed(first..<page, domain)
            first = page + 1
          } else if sealed.contains(page) {
            table.releaseClaim(page)
            dropClaimed(first..<page, domain)
            first = page + 1
          }
        }
        dropClaimed(first..<pages.upperBound, domain)
      }
      return true
    }
  }

  private func dropClaimed(_ pages: Range<Int>, _ domain: borrowing FaultDomain) {
    if pages.isEmpty { return }
    if domain.dropMapping(domain.addresses(of: pages)) == 0 {
      used.remove(pages)
      idle.insert(pages)
    }
    for page in pages { table.releaseClaim(page) }
  }

  private func isYoung(_ page: Int) -> Bool {
    unsafe protection.domain.pointee.withNotifications {
      $0.ask(page..<page + 1) { subscriber, pages, region in subscriber.clearYoung(pages, of: region) }
    } ?? false
  }

  // MARK: Discarding

  /// Makes sealed and poisoned pages of `pages` read as zeros, so that nobody finds sealed bytes where none are sealed any more.
  func wipe(_ pages: Range<Int>) throws(PinError) {
    for page in pages where sealed.contains(page) || poisoned.contains(page) || refused.contains(page) {
      let result = shared { domain -> CInt in
        _ = table.claim(page)
        defer { table.releaseClaim(page) }
        if domain.withOwedBytes({ $0.keep(page..<page + 1, in: domain) }) == .held { return -11 }
        let extent = unsafe frames.extent(of: page)
        let result = unsafe frames.pool.punch(extent.pointee, page..<page + 1)
        guard result == 0 else { return result }
        unsafe extent.pointee.update(page) { word in
          var word = word
          word.flags.remove(.sealed)
          return word
        }
        sealed.remove(page..<page + 1)
        poisoned.remove(page..<page + 1)
        readmit(page)
        return 0
      }
      try PinError.check(result, "discard sealed page \(page)", pageAddresses(page))
    }
  }
}
