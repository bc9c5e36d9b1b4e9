internal import Synchronization

/// What all regions over one store ask of it, in order, and how many of the ``StoreThreads`` are at it.
///
/// Each store has a queue of its own: one that does not answer fills it, and no other store's.
@safe final class StoreQueue: @unchecked Sendable {  // what changes is the lock's of its threads
  static let capacity = 4096
  /// Unique as long as a region has the queue: that has the store, too.
  let store: ObjectIdentifier
  /// For the log.
  let name: String
  private let ring: UnsafeMutablePointer<StoreThreads.Request>
  private var first = 0
  private(set) var count = 0
  /// How many requests there have been, ever.
  private(set) var added: UInt64 = 0
  /// How many threads are at the store.
  var held = 0
  /// The next one in which a request waits.
  var next: StoreQueue?
  /// The watchdog's.
  private var watch = Watch()
  private var stuck = WorkWatch()

  init(_ store: any PageStore) {
    self.store = ObjectIdentifier(store)
    name = Self.name(of: store)
    unsafe ring = .allocate(capacity: Self.capacity)
  }

  deinit { unsafe ring.deallocate() }

  private static func name(of store: any PageStore) -> String {
    if let file = store as? FileStore, let path = file.path { return "FileStore \(path)" }
    return store is any CustomStringConvertible ? "\(type(of: store)) \(store)" : "\(type(of: store))"
  }

  /// False if there is no room.
  func append(_ request: StoreThreads.Request) -> Bool {
    guard count < Self.capacity else { return false }
    unsafe (ring + (first + count) % Self.capacity).initialize(to: request)
    count += 1
    added += 1
    return true
  }

  /// Not empty.
  var head: StoreThreads.Request { unsafe ring[first] }

  func removeFirst() -> StoreThreads.Request {
    let request = head
    count -= 1
    // The memory behind what has ever waited at a time stays untouched.
    first = count == 0 ? 0 : (first + 1) % Self.capacity
    return request
  }

  /// True once for as long as requests keep waiting for longer than `patience` nanoseconds, in time in which the process could run. For
  /// the watchdog.
  func isOverdue(patience: UInt64) -> Bool { watch.isOverdue(added: added, waiting: count, patience: patience) }

  /// True once for as long as something waits and none of it was taken for `patience` nanoseconds in which the process could run. For the
  /// watchdog.
  func isStuck(patience: UInt64) -> Bool { stuck.isOverdue(count == 0 ? 0 : added - UInt64(count) + 1, patience: patience) }

  func forEachWaiting(_ body: (StoreThreads.Request) -> Void) {
    for index in 0..<count { body(unsafe ring[(first + index) % Self.capacity]) }
  }

  /// Looks at the last of those that wait until it waits no more, and then at the last again.
  private struct Watch {
    private var work = WorkWatch()
    /// Which request it is; 0: none.
    private var mark: UInt64 = 0
    private var isLate = false
    private var isSaid = false

    mutating func isOverdue(added: UInt64, waiting: Int, patience: UInt64) -> Bool {
      if added - UInt64(waiting) >= mark {
        if !isLate { isSaid = false }
        isLate = false
        mark = waiting == 0 ? 0 : added
      }
      guard work.isOverdue(mark, patience: patience) else { return false }
      isLate = true
      defer { isSaid = true }
      return !isSaid
    }
  }
}
