internal import Synchronization

// How changes tell subscribers: one operation is one start and one end (N10), whoever makes it.

extension FaultDomain {
  /// Grows with each subscription; 0 before the first.
  @inline(__always) var subscriptionVersion: UInt64 {
    withNotifications { $0.version.load(ordering: .sequentiallyConsistent) } ?? 0
  }

  /// The start of a change in the fault path, which blocks on nobody; under the shared lock.
  func startInFaultPath(_ event: InvalidationRange.Event, _ pages: Range<Int>) -> RegionNotifications.Start {
    let start = withNotifications { $0.start(event, pages, isBlockable: false) } ?? .unwatched
    switch start {
    case .wouldBlock, .failed: wasRefused.store(true, ordering: .relaxed)
    case .begun: wasRefused.store(false, ordering: .relaxed)
    case .unwatched: break
    }
    return start
  }

  /// A fault could not be resolved in time: says why. What it goes by may be another fault's by then, and decides nothing else.
  func failLate() {
    let copyError = copyError.load(ordering: .relaxed)
    if wasRefused.load(ordering: .relaxed) {
      fail(.subscriberBlocked, errno: UffdResult.again.errno)
    } else if copyError != 0 {
      fail(.noFrame, errno: copyError)
    } else {
      fail(.timedOut, errno: UffdResult.again.errno)
    }
  }
}

extension RegionProtection {
  /// What a change is about.
  enum Reach {
    case pages(Range<Int>)
    /// Those that may be written now, and lose that right.
    case open
  }

  /// What subscribers were told of a change that has started.
  struct Told {
    fileprivate let version: UInt64
    /// `nil` where nobody has ever subscribed.
    fileprivate let pages: Range<Int>?

    func covers(_ changed: Range<Int>) -> Bool {
      guard let pages else { return true }
      return pages.lowerBound <= changed.lowerBound && changed.upperBound <= pages.upperBound
    }

    /// Whether nobody has subscribed since; under the exclusive lock.
    func isCurrent(_ domain: borrowing FaultDomain) -> Bool { domain.subscriptionVersion == version }
  }

  /// Runs `body` under the exclusive lock until it returns true, between a start and an end.
  ///
  /// The start comes before the lock, so that a subscriber may wait for a thread that is inside a fault (N8). By the time the lock is held
  /// more pages may be open than were told, and somebody may have subscribed: then it ends without `body`, and begins again.
  ///
  /// - Parameter ahead: Does what can be done before `body`, of what was told and as long as that is current, under exclusive locks of its own.
  /// - Throws: What `body` and `ahead` throw; `.timedOut`, `.subscriberFailed`.
  func untilDone(
    _ event: InvalidationRange.Event, _ reach: Reach, ahead: (Told) throws(PinError) -> Void = { _ in },
    _ body: (borrowing FaultDomain, inout Invalidation?) throws(PinError) -> Bool
  ) throws(PinError) {
    var reach = reach
    while true {
      let version = unsafe domain.pointee.subscriptionVersion
      let pages = pages(reach)
      var invalidation = try start(event, pages)
      var isDone = false
      do throws(PinError) {
        try ahead(Told(version: version, pages: version == 0 ? nil : pages))
        try untilDone { domain throws(PinError) in
          guard domain.subscriptionVersion == version, Self.covers(pages, reach, domain) else { return true }
          isDone = try body(domain, &invalidation)
          return isDone
        }
      } catch {
        invalidation?.end()
        throw error
      }
      invalidation?.end()
      if isDone { return }
      // Writers are faster than subscribers.
      if case .open = reach { reach = unsafe .pages(0..<domain.pointee.table.pageCount) }
    }
  }

  /// Runs `body` for one of `parts` after the other, each under the exclusive lock of its own until it returns true, all between one start and
  /// one end (N10): in between others have their turn.
  ///
  /// Somebody who subscribes meanwhile ends that pair, and hears of the rest: each pair is about the pages from the first to the last of the
  /// parts that are left (N9). Parts are runs in order, none is empty.
  func untilDone(
    _ event: InvalidationRange.Event, in parts: [[Range<Int>]],
    _ body: (borrowing FaultDomain, [Range<Int>], inout Invalidation?) throws(PinError) -> Bool
  ) throws(PinError) {
    var next = 0
    while next < parts.count {
      guard let first = parts[next].first, let last = parts[parts.count - 1].last else { return }
      let version = unsafe domain.pointee.subscriptionVersion
      var invalidation = try start(event, first.lowerBound..<last.upperBound)
      do throws(PinError) {
        var isCurrent = true
        while isCurrent, next < parts.count {
          try untilDone { domain throws(PinError) in
            isCurrent = domain.subscriptionVersion == version
            if !isCurrent { return true }
            return try body(domain, parts[next], &invalidation)
          }
          if isCurrent { next += 1 }
        }
      } catch {
        invalidation?.end()
        throw error
      }
      invalidation?.end()
    }
  }

  /// What is open, with what faults are about to put on record.
  private func pages(_ reach: Reach) -> Range<Int> {
    if case .open = reach, unsafe domain.pointee.subscribers.load(ordering: .acquiring) != 0 {
      return exclusive { Self.pages(reach, $0) }
    }
    return unsafe Self.pages(reach, domain.pointee)
  }

  private static func pages(_ reach: Reach, _ domain: borrowing FaultDomain) -> Range<Int> {
    switch reach {
    case .pages(let pages): return pages
    case .open:
      // Looking costs as much as there is to see.
      if domain.subscribers.load(ordering: .acquiring) == 0 { return 0..<0 }
      return union(domain.table.open.bounds, domain.table.discarded.bounds)
    }
  }

  private static func union(_ one: Range<Int>?, _ other: Range<Int>?) -> Range<Int> {
    guard let one, let other else { return one ?? other ?? 0..<0 }
    return min(one.lowerBound, other.lowerBound)..<max(one.upperBound, other.upperBound)
  }

  private static func covers(_ told: Range<Int>, _ reach: Reach, _ domain: borrowing FaultDomain) -> Bool {
    let now = pages(reach, domain)
    return now.isEmpty || (told.lowerBound <= now.lowerBound && now.upperBound <= told.upperBound)
  }

  /// Tells everybody who subscribes to any of `pages`; waits for those who would block.
  func start(_ event: InvalidationRange.Event, _ pages: Range<Int>) throws(PinError) -> Invalidation? {
    if pages.isEmpty { return nil }
    var deadline = unsafe Deadline(domain.pointee.patience)
    while true {
      let start = unsafe domain.pointee.withNotifications { $0.start(event, pages, isBlockable: true) } ?? .unwatched
      switch start {
      case .unwatched: return nil
      case .begun(let invalidation): return invalidation
      case .failed(let error):
        throw PinError(
          .subscriberFailed, operation: "invalidate pages \(pages) (\(event))", range: addresses,
          advice: "A subscriber threw, and nothing has changed: \(error)")
      case .wouldBlock:
        if deadline.isOver() {
          throw PinError(
            .timedOut, operation: "invalidate pages \(pages) (\(event))", range: addresses,
            advice: "A subscriber kept answering .wouldBlock; whoever has the lock that it wants may wait for this thread.")
        }
        Kernel.pause(nanoseconds: 50_000)
      }
    }
  }

  /// The same, waiting for nobody.
  func tryStart(_ event: InvalidationRange.Event, _ pages: Range<Int>) throws(PinError) -> TryStart {
    let start = unsafe domain.pointee.withNotifications { $0.start(event, pages, isBlockable: false) } ?? .unwatched
    switch start {
    case .unwatched: return .begun(nil)
    case .begun(let invalidation): return .begun(invalidation)
    case .wouldBlock: return .wouldBlock
    case .failed(let error):
      throw PinError(
        .subscriberFailed, operation: "invalidate pages \(pages) (\(event))", range: addresses,
        advice: "A subscriber threw, and nothing has changed: \(error)")
    }
  }

  enum TryStart {
    case begun(Invalidation?)
    case wouldBlock
  }

  /// Makes `notifications` known to the fault path, and waits until every change that began without them is over.
  func connect(_ notifications: RegionNotifications, of region: Region) {
    let raw = unsafe UInt(bitPattern: Unmanaged.passUnretained(notifications).toOpaque())
    exclusive { $0.subscribers.store(raw, ordering: .sequentiallyConsistent) }
    _ = discardLock.lockExclusive()
    discardLock.unlockExclusive()
    _ = region.unwatchedDiscards.lockExclusive()
    region.unwatchedDiscards.unlockExclusive()
    region.layout.withLock {}
  }
}
