internal import Synchronization

/// How a call that waits for nobody ended.
public enum Attempt: Sendable, Hashable {
  case done
  /// Something would have had to be waited for: a subscriber, a fault that is being served, another operation. Nothing has changed.
  case wouldBlock
}

extension Region {
  /// ``protect(_:to:)`` for who may not wait: subscribers are told that the range is not blockable (N4).
  ///
  /// - Throws: As ``protect(_:to:)``; `.subscriberFailed`. Nothing has changed then.
  public func tryProtect(_ pages: Range<Int>, to access: PageAccess = .readOnly) throws(PinError) -> Attempt {
    _ = try addresses(of: pages)
    try requireOutsideFaultPath("tryProtect")
    try enter("tryProtect")
    defer { leave() }
    guard !pages.isEmpty else { return .done }
    return try withRightsChangingIfFree { () throws(PinError) in
      try layout.withLockIfAvailable { () throws(PinError) in
        guard let protection = attachments.find(RegionProtection.self) else {
          try apply(access, to: pages, armed: false)
          return .done
        }
        try protection.throwIfFailed("tryProtect")
        let event: InvalidationRange.Event = pages.count == 1 ? .protectionPage : .protectionRange
        return try protection.tryOnce(event, pages) { domain throws(PinError) in
          try protection.throwIfFailed("tryProtect")
          try apply(access, to: pages, armed: domain.delivery.load(ordering: .acquiring) == .mprotect)
        }
      } ?? .wouldBlock
    } ?? .wouldBlock
  }

  /// ``discard(_:whilePinned:)`` for who may not wait for a subscriber, an operation, or room in a snapshot. It may still wait for a moment, for a fault
  /// that takes one of the pages meanwhile, or for a reader that the kernel tells of the removal.
  ///
  /// - Throws: As ``discard(_:whilePinned:)``; `.subscriberFailed`.
  public func tryDiscard(_ pages: Range<Int>) throws(PinError) -> Attempt {
    let range = try addresses(of: pages)
    try requireOutsideFaultPath("tryDiscard")
    try enter("tryDiscard")
    defer { leave() }
    guard !pages.isEmpty else { return .done }
    try requireDiscardable(pages, range)
    guard discarding.tryLockShared() else { return .wouldBlock }
    defer { discarding.unlockShared() }
    guard unwatchedDiscards.tryLockShared() else { return .wouldBlock }
    defer { unwatchedDiscards.unlockShared() }
    try beginDrop(pages, "tryDiscard", whilePinned: .fail, patiently: false)
    defer { pinGate.endDrop() }
    // Whoever has a page gives it back soon, unless it waits for a callback.
    for page in pages where table[page].contains(.claimed) { return .wouldBlock }
    return try tryDiscardNow(pages, range) ? .done : .wouldBlock
  }
}

extension RegionProtection {
  /// Runs `body` under the exclusive lock between a start and an end, if nobody has to be waited for.
  func tryOnce(
    _ event: InvalidationRange.Event, _ pages: Range<Int>, _ body: (borrowing FaultDomain) throws(PinError) -> Void
  ) throws(PinError) -> Attempt {
    let version = unsafe domain.pointee.subscriptionVersion
    guard case .begun(let invalidation) = try tryStart(event, pages) else { return .wouldBlock }
    defer { invalidation?.end() }
    let isDone = try tryExclusive { domain throws(PinError) in
      guard domain.subscriptionVersion == version else { return false }
      try body(domain)
      return true
    }
    return isDone == true ? .done : .wouldBlock
  }
}
