internal import Synchronization

/// The subscriptions of a region at one moment, found by what they overlap; immutable.
///
/// Each level is an interval tree without pointers: an array in the order of first pages, where the middle of every half is a node
/// that knows the largest end below it. No library for Swift has one that can be read in a signal handler. Most subscriptions are in one
/// large level, those of late in a small one, so that adding one copies the small one only.
final class SubscriptionTable: Sendable {
  let settled: Level
  let recent: Level

  init(settled: Level, recent: Level) {
    self.settled = settled
    self.recent = recent
  }

  var isEmpty: Bool { settled.count == 0 && recent.count == 0 }

  /// Calls `body` with every subscriber that overlaps `pages`, always in the same order, until it returns false.
  @inline(__always) func forEach(overlapping pages: Range<Int>, _ body: (Subscriber) -> Bool) {
    if settled.visit(0, settled.count, pages, body) { _ = recent.visit(0, recent.count, pages, body) }
  }

  @safe final class Level: @unchecked Sendable {  // immutable
    @safe private struct Node {
      var start: Int
      var end: Int
      var largestEnd: Int
      var subscriber: Unmanaged<Subscriber>
    }
    private let nodes: UnsafeMutablePointer<Node>
    let count: Int
    /// In order; keeps them alive.
    let subscribers: [Subscriber]

    static let none = Level([])

    init(_ unordered: [Subscriber]) {
      subscribers = unordered.sorted { $0.pages.lowerBound < $1.pages.lowerBound }
      count = subscribers.count
      unsafe nodes = .allocate(capacity: max(1, count))
      for (index, subscriber) in subscribers.enumerated() {
        unsafe (nodes + index).initialize(
          to: Node(
            start: subscriber.pages.lowerBound, end: subscriber.pages.upperBound, largestEnd: 0,
            subscriber: .passUnretained(subscriber)))
      }
      _ = fillEnds(0, count)
    }

    deinit { unsafe nodes.deallocate() }

    private func fillEnds(_ low: Int, _ high: Int) -> Int {
      guard low < high else { return 0 }
      let middle = (low + high) / 2
      let largest = unsafe max(nodes[middle].end, max(fillEnds(low, middle), fillEnds(middle + 1, high)))
      unsafe nodes[middle].largestEnd = largest
      return largest
    }

    /// False if `body` wants no more.
    ///
    /// Only where something below the left half may overlap is there a recursion: for subscriptions that do not overlap each other
    /// this is a loop.
    func visit(_ low: Int, _ high: Int, _ pages: Range<Int>, _ body: (Subscriber) -> Bool) -> Bool {
      var low = low
      var high = high
      while low < high {
        // In order: what follows begins later still.
        if unsafe nodes[low].start >= pages.upperBound { return true }
        let middle = (low + high) / 2
        let node = unsafe nodes + middle
        if unsafe node.pointee.largestEnd <= pages.lowerBound { return true }
        if unsafe node.pointee.start >= pages.upperBound {
          high = middle
          continue
        }
        if low < middle, unsafe nodes[(low + middle) / 2].largestEnd > pages.lowerBound,
          !visit(low, middle, pages, body)
        {
          return false
        }
        if unsafe node.pointee.end > pages.lowerBound {
          guard unsafe node.pointee.subscriber._withUnsafeGuaranteedRef({ body($0) }) else { return false }
        }
        low = middle + 1
      }
      return true
    }
  }
}

/// One subscriber to a range of pages.
@safe final class Subscriber: Sendable {
  let notifier: any MMUNotifier
  let pages: Range<Int>
  /// Where it was subscribed.
  private let place: LockPlace
  private let running = Atomic<Int>(0)
  private let isRemoved = Atomic<Bool>(false)

  init(_ notifier: any MMUNotifier, _ pages: Range<Int>, at place: LockPlace = LockPlace()) {
    self.notifier = notifier
    self.place = place
    self.pages = pages
  }

  /// One that is removed right after is not called any more, wherever it is kept.
  var isActive: Bool { !isRemoved.load(ordering: .acquiring) }

  /// Runs a callback; `nil` if the subscription was removed.
  @inline(__always) func call<Result, Failure: Error>(
    _ operation: UInt64, _ kind: LockOrder.CallbackKind, _ body: (any MMUNotifier) throws(Failure) -> Result
  ) throws(Failure) -> Result? {
    running.add(1, ordering: .sequentiallyConsistent)
    defer { running.subtract(1, ordering: .sequentiallyConsistent) }
    if isRemoved.load(ordering: .sequentiallyConsistent) { return nil }
    guard unsafe Kernel.enterCallback(operation, of: Unmanaged.passUnretained(self).toOpaque()) else {
      preconditionFailure("callbacks are nested eight deep, though every call that could nest them is refused")
    }
    defer { Kernel.leaveCallback() }
    if LockOrder.isOn { LockOrder.enterCallback(kind, at: place) }
    defer { if LockOrder.isOn { LockOrder.leaveCallback() } }
    return try body(notifier)
  }

  /// Lets no callback begin any more, and waits for those that run. A thread that is inside callbacks itself does not count while it
  /// waits here: two that remove each other would wait for ever. False if it was removed before.
  func remove() -> Bool {
    let isFirst = !isRemoved.exchange(true, ordering: .sequentiallyConsistent)
    unsafe Kernel.forEachCallback { unsafe Self.at($0).running.subtract(1, ordering: .sequentiallyConsistent) }
    while running.load(ordering: .sequentiallyConsistent) > 0 { Kernel.pause(nanoseconds: 20_000) }
    unsafe Kernel.forEachCallback { unsafe Self.at($0).running.add(1, ordering: .sequentiallyConsistent) }
    return isFirst
  }

  private static func at(_ raw: UnsafeRawPointer) -> Subscriber {
    unsafe Unmanaged<Subscriber>.fromOpaque(raw).takeUnretainedValue()
  }
}
