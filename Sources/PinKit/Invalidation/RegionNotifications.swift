internal import Logging
internal import Synchronization

/// The subscriptions to a region, and the one place that calls them.
///
/// Dispatch takes no lock and allocates nothing: it reads an immutable table behind one pointer, inside a short count of readers, since
/// it may run in a signal handler. Whoever subscribes publishes a new table; old ones are freed when the readers that may have them are
/// gone.
@safe final class RegionNotifications: RegionAttachment, @unchecked Sendable {  // atomics, and the rest is in `state`
  private let region: Unmanaged<Region>
  private let table: PageTable
  /// An unretained ``SubscriptionTable``; 0 while nobody subscribes.
  private let current = Atomic<UInt>(0)
  /// How often somebody subscribed: an operation that began before must tell the newcomer too.
  let version = Atomic<UInt64>(0)
  private let state = Mutex(State())
  /// The invalidation that goes on while the region is unmapped.
  private let unmapping = Mutex<Invalidation?>(nil)
  /// Those that read a table, by the parity of the epoch in which they came.
  private let epoch = Atomic<Int>(0)
  private let even = Atomic<Int>(0)
  private let odd = Atomic<Int>(0)

  private struct State {
    var table = SubscriptionTable(settled: .none, recent: .none)
    /// Subscriptions that were removed and are still in the settled level.
    var gone = 0
    /// Tables that readers of this epoch may have, and of the one before.
    var retired: [SubscriptionTable] = []
    var old: [SubscriptionTable] = []
  }

  /// How many subscriptions the small level has at most.
  private static let recentLimit = 1024

  init(region: Region) {
    unsafe self.region = .passUnretained(region)
    table = region.table
  }

  /// A change that finds it so while somebody subscribes is waited for: see ``RegionProtection/connect(_:of:)``.
  @inline(__always) var isIdle: Bool { current.load(ordering: .acquiring) == 0 }

  // MARK: Subscribing

  func add(_ subscriber: Subscriber) {
    // Here and below: the last reference to a subscriber's object may go, and what that does is its own affair. It may subscribe, say.
    _ = state.withLock { state in
      let recent = state.table.recent.subscribers + [subscriber]
      defer { version.add(1, ordering: .sequentiallyConsistent) }
      guard recent.count > Self.recentLimit else {
        return publish(SubscriptionTable(settled: state.table.settled, recent: .init(recent)), &state)
      }
      return settle(recent, &state)
    }
  }

  private func settle(_ recent: [Subscriber], _ state: inout State) -> [SubscriptionTable] {
    state.gone = 0
    let all = state.table.settled.subscribers.filter(\.isActive) + recent
    return publish(SubscriptionTable(settled: .init(all), recent: .none), &state)
  }

  /// When it returns, no callback of it is running, but on threads that are removing subscriptions from inside one.
  func remove(_ subscriber: Subscriber) {
    guard subscriber.remove() else { return }
    _ = state.withLock { state -> [SubscriptionTable] in
      let recent = state.table.recent.subscribers.filter { $0 !== subscriber }
      if recent.count < state.table.recent.count {
        return publish(SubscriptionTable(settled: state.table.settled, recent: .init(recent)), &state)
      }
      state.gone += 1
      return state.gone * 2 > state.table.settled.count ? settle(recent, &state) : []
    }
  }

  /// Returns the tables that nobody can have any more, to be let go of without the lock.
  private func publish(_ next: SubscriptionTable, _ state: inout State) -> [SubscriptionTable] {
    state.retired.append(state.table)
    state.table = next
    let raw = next.isEmpty ? 0 : unsafe UInt(bitPattern: Unmanaged.passUnretained(next).toOpaque())
    current.store(raw, ordering: .sequentiallyConsistent)
    // Readers of the epoch before may have what was retired then. Where nobody reads, all goes at once.
    var free: [SubscriptionTable] = []
    for _ in 0..<2 {
      let now = epoch.load(ordering: .relaxed)
      guard readers(of: now + 1) == 0 else { break }
      free += state.old
      state.old = state.retired
      state.retired = []
      epoch.store(now + 1, ordering: .sequentiallyConsistent)
    }
    return free
  }

  private func readers(of epoch: Int) -> Int {
    epoch & 1 == 0 ? even.load(ordering: .sequentiallyConsistent) : odd.load(ordering: .sequentiallyConsistent)
  }

  private func count(_ change: Int, in epoch: Int) {
    if epoch & 1 == 0 {
      even.add(change, ordering: .sequentiallyConsistent)
    } else {
      odd.add(change, ordering: .sequentiallyConsistent)
    }
  }

  // MARK: Dispatch

  /// Begins to read; ``endReading(_:)`` takes what it returns.
  private func beginReading() -> Int {
    while true {
      let now = epoch.load(ordering: .sequentiallyConsistent)
      count(1, in: now)
      if epoch.load(ordering: .sequentiallyConsistent) == now { return now }
      count(-1, in: now)
    }
  }

  fileprivate func endReading(_ epoch: Int) { count(-1, in: epoch) }

  enum Start: Sendable {
    /// Nobody subscribes to any of the pages.
    case unwatched
    case begun(Invalidation)
    case wouldBlock
    case failed(any Error)
  }

  /// What to do about a subscriber that refused, or threw: ask it again, or go on without it.
  typealias Insistence = (_ error: (any Error)?) -> Bool

  /// Tells everybody who overlaps `pages` that they are about to change. If one refuses, those who were told before get their end;
  /// unless the caller insists.
  func start(
    _ event: InvalidationRange.Event, _ pages: Range<Int>, isBlockable: Bool, insisting: Insistence? = nil
  ) -> Start {
    if isIdle { return .unwatched }
    let epoch = beginReading()
    let raw = current.load(ordering: .sequentiallyConsistent)
    guard raw != 0 else {
      endReading(epoch)
      return .unwatched
    }
    let range = unsafe InvalidationRange(
      region: region, pages: pages, event: event, isBlockable: isBlockable,
      operation: Kernel.nextOperation(), owner: Kernel.invalidationOwner)
    let subscribers = unsafe Unmanaged<SubscriptionTable>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!)
    return unsafe subscribers._withUnsafeGuaranteedRef { start(range, $0, epoch, insisting) }
  }

  private func start(
    _ range: InvalidationRange, _ subscribers: SubscriptionTable, _ epoch: Int, _ insisting: Insistence?
  ) -> Start {
    var told = 0
    var first: Unmanaged<Subscriber>?
    var refusal: Subscriber?
    var failure: (any Error)?
    subscribers.forEach(overlapping: range.pages) { subscriber in
      repeat {
        (refusal, failure) = (nil, nil)
        do {
          let response = try subscriber.call(range.operation, .invalidateRangeStart) { try $0.invalidateRangeStart(range) }
          if response == .wouldBlock { refusal = subscriber }
        } catch {
          refusal = subscriber
          failure = error
        }
      } while refusal != nil && insisting?(failure) == true
      if insisting != nil { refusal = nil }
      guard refusal == nil else { return false }
      if told == 0 { unsafe first = .passUnretained(subscriber) }
      told += 1
      return true
    }
    if refusal != nil {
      subscribers.forEach(overlapping: range.pages) { subscriber in
        if told == 0 { return false }
        told -= 1
        _ = subscriber.call(range.operation, .invalidateRangeEnd) { $0.invalidateRangeEnd(range) }
        return true
      }
      endReading(epoch)
      if let failure { return .failed(failure) }
      return .wouldBlock
    }
    if told == 0 {
      endReading(epoch)
      return .unwatched
    }
    let only = unsafe told == 1 ? first : nil
    return unsafe .begun(Invalidation(self, subscribers, only, range, epoch: epoch))
  }

  /// Whether any subscriber that overlaps `pages` says yes; all are asked.
  func ask(_ pages: Range<Int>, _ question: (any MMUNotifier, Range<Int>, Region) -> Bool) -> Bool {
    if isIdle { return false }
    let epoch = beginReading()
    defer { endReading(epoch) }
    let raw = current.load(ordering: .sequentiallyConsistent)
    guard raw != 0 else { return false }
    var answer = false
    unsafe Unmanaged<SubscriptionTable>.fromOpaque(UnsafeRawPointer(bitPattern: raw)!)._withUnsafeGuaranteedRef {
      $0.forEach(overlapping: pages) { subscriber in
        let isYes = subscriber.call(Kernel.nextOperation(), .invalidateRangeEnd) {
          question($0, pages.clamped(to: subscriber.pages), unsafe region.takeUnretainedValue())
        }
        if isYes == true { answer = true }
        return true
      }
    }
    return answer
  }

  // MARK: The region goes

  func regionWillGo() {
    let space = unsafe region.takeUnretainedValue().space
    // A thread that a child of fork() does not have may hold what a callback wants.
    if isIdle || !space.isOfThisProcess { return }
    var deadline = Deadline(seconds: space.configuration.patience)
    let begun = start(.unmap, 0..<table.pageCount, isBlockable: true) { [logger = space.configuration.logger] error in
      // The region goes all the same, and everybody else has to hear of it.
      if let error {
        logger.critical("a subscriber failed as its region was unmapped: \(error)")
      } else if !deadline.isOver() {
        Kernel.pause(nanoseconds: 50_000)
        return true
      } else {
        logger.critical("a subscriber would not let its region be unmapped")
      }
      return false
    }
    if case .begun(let invalidation) = begun { unmapping.withLock { $0 = invalidation } }
  }

  func regionWillUnmap() {}

  func regionDidUnmap() {
    guard unsafe region.takeUnretainedValue().space.isOfThisProcess else { return }
    unmapping.withLock { $0.take() }?.end()
    releaseAll()
  }

  /// Tells everybody that the memory is gone for good, once, and forgets them.
  private func releaseAll() {
    let (all, free) = state.withLock { state in
      let all = state.table.settled.subscribers + state.table.recent.subscribers
      return (all, publish(SubscriptionTable(settled: .none, recent: .none), &state))
    }
    _ = free
    for subscriber in all {
      _ = subscriber.call(Kernel.nextOperation(), .invalidateRangeEnd) { $0.release() }
      _ = subscriber.remove()
    }
  }
}

/// A change that subscribers have been told of: everyone who got its start gets its end, once, by ``end()``.
@safe struct Invalidation: Sendable {
  private unowned(unsafe) let notifications: RegionNotifications
  private unowned(unsafe) let subscribers: SubscriptionTable
  /// The one who was told, where there was one: most changes are of interest to few, and looking for them again is what they cost.
  private let only: Unmanaged<Subscriber>?
  private let range: InvalidationRange
  private let epoch: Int
  private var isInvalidated = false

  fileprivate init(
    _ notifications: RegionNotifications, _ subscribers: SubscriptionTable, _ only: Unmanaged<Subscriber>?,
    _ range: InvalidationRange, epoch: Int
  ) {
    unsafe self.notifications = notifications
    unsafe self.subscribers = subscribers
    unsafe self.only = only
    self.range = range
    self.epoch = epoch
  }

  /// The pages have no frame at this moment.
  mutating func invalidateRange() {
    isInvalidated = true
    forEach { subscriber in _ = subscriber.call(range.operation, .invalidateRange) { $0.invalidateRange(range) } }
  }

  /// The same of some of the pages: the others keep their frames.
  mutating func invalidateRange(_ part: Range<Int>) {
    isInvalidated = true
    let range = range.part(part)
    forEach { subscriber in
      guard subscriber.pages.overlaps(part) else { return }
      _ = subscriber.call(range.operation, .invalidateRange) { $0.invalidateRange(range) }
    }
  }

  /// The change is complete.
  func end() {
    forEach { subscriber in
      _ = subscriber.call(range.operation, .invalidateRangeEnd) {
        if !isInvalidated { $0.invalidateRange(range) }
        $0.invalidateRangeEnd(range)
      }
    }
    unsafe notifications.endReading(epoch)
  }

  /// Those who were told; reading keeps the table, and that the subscribers.
  @inline(__always) private func forEach(_ body: (Subscriber) -> Void) {
    if let only = unsafe only {
      unsafe only._withUnsafeGuaranteedRef { body($0) }
    } else {
      unsafe subscribers.forEach(overlapping: range.pages) { subscriber in
        body(subscriber)
        return true
      }
    }
  }
}
