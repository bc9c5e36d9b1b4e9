internal import Synchronization

/// The one funnel to the bytes of a page (S1): faults, checked accesses, pins, fixed buffers, transfers, lookups, mirrors and clones all come
/// through here.
extension SealedPages {
  /// Lets the caller, who has claimed the page, at its bytes: opens it if it is sealed. `nil`, or why not.
  func answer(_ page: Int, isFault: Bool, in domain: borrowing FaultDomain) -> AccessRefusal? {
    if isLost(domain) { return .lost }
    if poisoned.contains(page) { return refuse(page, isFault, .poisoned) }
    guard sealed.contains(page) else {
      if options.idleSeconds != nil { noteUse(page..<page + 1) }
      readmit(page)
      return nil
    }
    if options.onAccess == .fail { return refuse(page, isFault, .sealed) }
    return open(page, isFault: isFault, in: domain)
  }

  /// Opens a page that is claimed.
  func open(_ page: Int, isFault: Bool, in domain: borrowing FaultDomain) -> AccessRefusal? {
    // A snapshot of when it was sealed has the sealed bytes.
    if domain.withOwedBytes({ $0.keep(page..<page + 1, in: domain) }) == .held { return .held }
    TestHooks.reach(.opening, page: page)
    do throws(PinError) {
      unsafe try sealer.open(bytes(page), identity: identity(page), record: UnsafeRawBufferPointer(record(page)))
    } catch {
      if error.code != .tampered { return refuse(page, isFault, .keyGone) }
      poisoned.insert(page..<page + 1)
      counters.add(.poisonedPages)
      // The watchdog says so: this may be a fault, which allocates nothing.
      poisonedNews.store(page + 1, ordering: .relaxed)
      return refuse(page, isFault, .poisoned)
    }
    unsafe frames.extent(of: page).pointee.update(page) { word in
      var word = word
      word.flags.remove(.sealed)
      return word
    }
    sealed.remove(page..<page + 1)
    counters.add(.openedSeals)
    noteUse(page..<page + 1)
    readmit(page)
    return nil
  }

  /// Whoever faulted gets SIGBUS, or EFAULT in a system call; whoever called gets an error.
  private func refuse(_ page: Int, _ isFault: Bool, _ refusal: AccessRefusal) -> AccessRefusal {
    if isFault {
      refused.insert(page..<page + 1)
      // Each time: protect(_:to:) may have given the rights back. Where the kernel cannot, the fault would come again and again.
      if Memory.protect(pageAddresses(page), []) != 0 { protection.fail(.refused) }
    }
    return refusal
  }

  /// Lets faults at a page again.
  func readmit(_ page: Int) {
    guard refused.contains(page) else { return }
    _ = Memory.protect(pageAddresses(page), table[page].rights)
    refused.remove(page..<page + 1)
  }

  func pageAddresses(_ page: Int) -> AddressRange {
    AddressRange(start: addresses.start + UInt(page * Memory.pageSize), count: Memory.pageSize)
  }

  // MARK: For who does not fault

  /// What ``makeAccessible(_:insists:)`` asks for.
  func open(_ pages: Range<Int>, insists: Bool) throws(PinError) {
    sealer.prepareThread()
    var deadline = unsafe Deadline(protection.domain.pointee.patience)
    var next = pages.lowerBound
    while next < pages.upperBound {
      let part = next..<min(pages.upperBound, (next & ~(Self.openChunk - 1)) + Self.openChunk)
      let refusal = shared { domain -> AccessRefusal? in
        for page in part { _ = table.claim(page) }
        defer { for page in part { table.releaseClaim(page) } }
        if isLost(domain) { return .lost }
        var first = next
        defer { if insists { map(first..<next, in: domain) } }
        while next < part.upperBound {
          let page = next
          if poisoned.contains(page) { return .poisoned }
          if sealed.contains(page) {
            if !insists, options.onAccess == .fail { return .sealed }
            if let refusal = open(page, isFault: false, in: domain) { return refusal }
          } else {
            readmit(page)
            noteUse(page..<page + 1)
            if first == page { first += 1 }
          }
          next += 1
        }
        return nil
      }
      if refusal == .held, !deadline.isOver() {
        Kernel.pause(nanoseconds: 200_000)
        continue
      }
      if let refusal { throw reason(refusal, next) }
    }
  }

  /// What ``requireOpenable(_:)`` asks for.
  func openAll(_ pages: Range<Int>) throws(PinError) {
    if !mayHaveSealedBytes { return }
    for page in pages {
      if poisoned.contains(page) { throw reason(.poisoned, page) }
      if options.onAccess == .fail, sealed.contains(page) { throw reason(.sealed, page) }
    }
    try open(pages, insists: false)
  }

  /// In pages: what is claimed and mapped at a time; a power of two.
  private static let openChunk = 64

  /// Maps what was opened by name, as a fault for reading does with its neighbours: whoever opens a range is about to touch it. The pages
  /// are claimed, so nobody can have sealed them since; what cannot be mapped takes a fault.
  private func map(_ pages: Range<Int>, in domain: borrowing FaultDomain) {
    var rest = domain.addresses(of: pages)
    while !rest.isEmpty {
      let (result, bytes) = domain.mapExisting(rest)
      guard result == .done, bytes > 0 else { return }
      rest = AddressRange(start: rest.start + UInt(bytes), end: rest.end)
    }
  }

  func reason(_ refusal: AccessRefusal, _ page: Int) -> PinError {
    if refusal == .lost, let failure = protection.failure { return failure }
    let (code, advice): (PinError.Code, String) =
      switch refusal {
      case .poisoned: (.tampered, "Its sealed bytes were changed: discard the page, it never opens again.")
      case .sealed: (.sealed, "Call makeAccessible(_:) first: the region was told not to open pages by itself.")
      case .lost: (.handlerLost, "The region can no longer be watched: unmap it.")
      case .keyGone: (.keyGone, "The sealer has lost its key, or was closed.")
      case .held: (.timedOut, "A snapshot has no room for the page's sealed bytes: close it.")
      }
    return PinError(code, operation: "open page \(page)", range: pageAddresses(page), advice: advice)
  }
}
