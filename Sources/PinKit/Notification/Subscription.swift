internal import Synchronization

/// That somebody is told of the changes to some pages. Dropping the last reference removes it.
///
/// A subscription to a region keeps the region; one to an address space keeps the space.
public final class Subscription: Sendable {
  private let remover: @Sendable () -> Void
  private let isRemoved = Atomic<Bool>(false)

  init(_ remover: @escaping @Sendable () -> Void) { self.remover = remover }

  deinit { remove() }

  /// Ends it. When this returns, no callback of it is running and none will; those that are inside ``remove()`` themselves excepted.
  /// May be called from inside a callback. A start that was delivered before then has no end.
  ///
  /// Blocks while callbacks run on other threads: hold no lock that they want. The subscriber itself may be kept a while longer, where
  /// changes are under way: until the next one comes or goes.
  public func remove() {
    if !isRemoved.exchange(true, ordering: .sequentiallyConsistent) { remover() }
  }
}

extension Region {
  /// Tells `notifier` before anything happens to `pages`, all of them unless given: see ``MMUNotifier``.
  ///
  /// From when this returns, every change is told, from its start on. Rare and slow: waits for changes that are under way.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.invalidArgument` for an empty range, `.unmapped`, `.wouldDeadlock` from a callback,
  ///   `.limitReached`.
  public func subscribe(
    _ notifier: any MMUNotifier, to pages: Range<Int>? = nil, file: StaticString = #fileID, line: UInt = #line
  ) throws(PinError) -> Subscription {
    let pages = try subscribable(pages)
    try requireOutsideFaultPath("subscribe")
    try enter("subscribe")
    defer { leave() }
    let subscriber = Subscriber(notifier, pages, at: LockPlace(file: file, line: line))
    let notifications = try connect(subscriber)
    return Subscription { [self] in
      // In a child of fork() a callback may run for ever, and a thread that does not exist hold the lock.
      if space.isOfThisProcess { notifications.remove(subscriber) }
    }
  }

  /// The pages that somebody wants to be told of: all unless given.
  func subscribable(_ pages: Range<Int>?) throws(PinError) -> Range<Int> {
    let pages = pages ?? 0..<pageCount
    _ = try addresses(of: pages)
    if pages.isEmpty {
      throw PinError(
        .invalidArgument, operation: "subscribe", range: addresses, advice: "Subscribe to one page at least.")
    }
    return pages
  }

  @discardableResult func connect(_ subscriber: Subscriber) throws(PinError) -> RegionNotifications {
    let protection = try protection()
    let notifications = try attachments.findOrMake(RegionNotifications.self) { () throws(PinError) in
      RegionNotifications(region: self)
    }
    notifications.add(subscriber)
    protection.connect(notifications, of: self)
    return notifications
  }

  /// Whether `pages` were used through any subscriber since their marks were last cleared (N13). What the program itself uses, the
  /// kernel knows.
  ///
  /// - Throws: ``PinError``: `.outOfBounds`, `.unmapped`, `.wouldDeadlock` from a callback.
  public func testYoung(_ pages: Range<Int>) throws(PinError) -> Bool {
    try ask("testYoung", pages) { $0.testYoung($1, of: $2) }
  }

  /// The same, and clears the marks. With `flush` the next use of the pages is seen for sure; without it those who use translations
  /// that they have already may go unseen for a while, which is cheaper.
  public func clearYoung(_ pages: Range<Int>, flush: Bool = false) throws(PinError) -> Bool {
    try ask("clearYoung", pages) { flush ? $0.clearFlushYoung($1, of: $2) : $0.clearYoung($1, of: $2) }
  }

  private func ask(
    _ operation: StaticString, _ pages: Range<Int>, _ question: (any MMUNotifier, Range<Int>, Region) -> Bool
  ) throws(PinError) -> Bool {
    _ = try addresses(of: pages)
    try requireOutsideFaultPath(operation)
    try enter(operation)
    defer { leave() }
    return attachments.find(RegionNotifications.self)?.ask(pages, question) ?? false
  }
}

extension AddressSpace {
  /// Tells `notifier` before anything happens to any region of the space, those made later included, and once when the space closes,
  /// before anything goes (N12).
  ///
  /// - Throws: ``PinError``: `.unmapped`, `.wouldDeadlock` from a callback.
  public func subscribe(_ notifier: any MMUNotifier) throws(PinError) -> Subscription {
    try requireOpen("subscribe")
    if Kernel.isInFaultPath || CriticalSection.isInsideAny {
      throw PinError(.wouldDeadlock, operation: "subscribe", advice: "Subscribe outside callbacks and withBytes.")
    }
    let all = try services.findOrMake(SpaceNotifications.self) { () throws(PinError) in SpaceNotifications() }
    let subscriber = SpaceSubscriber(notifier)
    try all.add(subscriber, to: self)
    return Subscription { [self] in
      if isOfThisProcess { all.remove(subscriber) }
    }
  }
}

/// A subscriber to a whole address space, and what it has in each region.
final class SpaceSubscriber: Sendable {
  let notifier: any MMUNotifier
  private let parts = Mutex(Parts())
  private let isReleased = Atomic<Bool>(false)

  private struct Part: Sendable {
    let region: UInt64
    weak var notifications: RegionNotifications?
    let subscriber: Subscriber
  }
  private struct Parts {
    var all: [Part] = []
    var hasLeft = false
  }

  init(_ notifier: any MMUNotifier) { self.notifier = notifier }

  /// Does nothing for a region that it has joined, or that is going.
  func join(_ region: Region) throws(PinError) {
    guard region.gate.enter() else { return }
    defer { region.gate.leave() }
    if parts.withLock({ $0.all.contains { $0.region == region.id } }) { return }
    let subscriber = Subscriber(PartNotifier(notifier), 0..<region.pageCount)
    let notifications = try region.connect(subscriber)
    let isLate = parts.withLock { parts in
      parts.all.removeAll { $0.notifications == nil }
      if !parts.hasLeft { parts.all.append(Part(region: region.id, notifications: notifications, subscriber: subscriber)) }
      return parts.hasLeft
    }
    if isLate { notifications.remove(subscriber) }
  }

  var hasLeft: Bool { parts.withLock { $0.hasLeft } }

  /// Lets no callback come any more.
  func leave() {
    let all = parts.withLock { parts in
      defer { parts = Parts(hasLeft: true) }
      return parts.all
    }
    for part in all { part.notifications?.remove(part.subscriber) }
  }

  func release() {
    leave()
    if !isReleased.exchange(true, ordering: .sequentiallyConsistent) { notifier.release() }
  }
}

/// Passes everything on but the end of a region, which is not that of the space.
private final class PartNotifier: MMUNotifier {
  private let notifier: any MMUNotifier
  init(_ notifier: any MMUNotifier) { self.notifier = notifier }

  func invalidateRangeStart(_ range: InvalidationRange) throws -> InvalidationResponse {
    try notifier.invalidateRangeStart(range)
  }
  func invalidateRange(_ range: InvalidationRange) { notifier.invalidateRange(range) }
  func invalidateRangeEnd(_ range: InvalidationRange) { notifier.invalidateRangeEnd(range) }
  func testYoung(_ pages: Range<Int>, of region: Region) -> Bool { notifier.testYoung(pages, of: region) }
  func clearYoung(_ pages: Range<Int>, of region: Region) -> Bool { notifier.clearYoung(pages, of: region) }
  func clearFlushYoung(_ pages: Range<Int>, of region: Region) -> Bool { notifier.clearFlushYoung(pages, of: region) }
}

/// The subscribers to a whole address space.
final class SpaceNotifications: AddressSpaceService {
  private let subscribers = Mutex<[SpaceSubscriber]>([])
  private let isClosed = Atomic<Bool>(false)

  func add(_ subscriber: SpaceSubscriber, to space: AddressSpace) throws(PinError) {
    // A region that is made meanwhile waits here, and joins after this.
    try subscribers.withLock { subscribers throws(PinError) in
      if isClosed.load(ordering: .acquiring) {
        throw PinError(.unmapped, operation: "subscribe", advice: "The address space was closed.")
      }
      do throws(PinError) {
        for region in space.mappedRegions where !region.gate.isClosed { try subscriber.join(region) }
      } catch {
        subscriber.leave()
        throw error
      }
      subscribers.append(subscriber)
    }
  }

  func remove(_ subscriber: SpaceSubscriber) {
    subscriber.leave()
    // From inside a callback the lock may be held by a thread that waits for that: then somebody else forgets it.
    _ = subscribers.withLockIfAvailable { $0.removeAll(where: \.hasLeft) }
  }

  func regionDidMap(_ region: Region) throws(PinError) {
    try subscribers.withLock { subscribers throws(PinError) in
      subscribers.removeAll(where: \.hasLeft)
      for subscriber in subscribers { try subscriber.join(region) }
    }
  }

  func spaceWillClose() {
    let all = subscribers.withLock { subscribers in
      isClosed.store(true, ordering: .releasing)
      defer { subscribers = [] }
      return subscribers
    }
    for subscriber in all { subscriber.release() }
  }

  func shutDown() {}
}
