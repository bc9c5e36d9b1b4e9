internal import Synchronization

/// The fault readers of a space: two, and more while all are at work and something waits; those beyond two go again when there was nothing for
/// them for a while. The watchdog starts them: it may allocate.
///
/// Who goes decides that itself, under the lock, by those who stay: no two can take each other for the one that does.
struct ReaderCrew: ~Copyable, Sendable {
  struct Members {
    var readers: [(thread: KernelThread, reader: FaultReader)] = []
    var isOver = false

    /// Without those that leave, and those that ended unasked.
    var staying: Int {
      readers.count { !$0.reader.isLeaving.load(ordering: .relaxed) && !$0.reader.hasEnded.load(ordering: .acquiring) }
    }

    /// Takes out those that leave, and those that ended and were reported; returns their threads.
    mutating func takeGone() -> [KernelThread] {
      let gone = readers.filter { $0.reader.isGone }
      readers.removeAll { $0.reader.isGone }
      return gone.map(\.thread)
    }
  }

  private let least: Int
  private let most: Int
  private let members = Mutex(Members())
  /// How many readers wait for something to serve. Only whether there is another one goes by it: too many for a while, or one too few.
  private let waiting = Atomic<Int>(0)
  /// Whether there may be more of them; seen late, the watchdog is rung once in vain.
  private let hasRoom = Atomic<Bool>(false)
  private let isWanted = Atomic<Bool>(false)
  /// How many readers serve a region. Only how long they look for more of its faults goes by it.
  private let serving = Atomic<Int>(0)
  private let processors = Kernel.processorCount
  /// At how many looks of the watchdog in a row nobody has waited.
  private let looksInVain = Atomic<Int>(0)

  init(most: Int) {
    self.most = most
    least = min(2, most)
  }

  /// Those that have not gone, dead ones among them until they are reported.
  var all: [FaultReader] { members.withLock { $0.readers.map(\.reader).filter { !$0.isGone } } }

  /// Starts the first ones; those that did start when another could not are ``shutDown()``'s.
  func start(for handler: FaultHandler) throws(PinError) {
    for _ in 0..<least { try add(to: handler) }
  }

  private func add(to handler: FaultHandler) throws(PinError) {
    let reader = try FaultReader(handler: handler)
    try members.withLock { members throws(PinError) in
      // Whoever shuts down joins those that are there by then.
      guard !members.isOver else { return }
      members.readers.append((try reader.start(), reader))
      hasRoom.store(members.staying < most, ordering: .sequentiallyConsistent)
    }
  }

  // MARK: For readers

  @inline(__always) func beginWaiting() { waiting.add(1, ordering: .sequentiallyConsistent) }

  /// Whether the watchdog is to be rung for another reader: nobody waits any more, and whoever faults next would. Each ring brings one, or the
  /// watchdog would be rung all the time.
  ///
  /// - Parameter hasWork: Whether the caller has come back with something.
  @inline(__always) func endWaiting(hasWork: Bool) -> Bool {
    waiting.subtract(1, ordering: .sequentiallyConsistent).newValue == 0 && hasWork
      && hasRoom.load(ordering: .sequentiallyConsistent) && !isWanted.exchange(true, ordering: .sequentiallyConsistent)
  }

  @inline(__always) func beginServing() { serving.add(1, ordering: .relaxed) }
  @inline(__always) func endServing() { serving.subtract(1, ordering: .relaxed) }

  /// Whether a reader may look for the next fault for a while rather than sleep: beside each there is a processor for whoever is to fault.
  @inline(__always) var mayLook: Bool { 2 * serving.load(ordering: .relaxed) <= processors }

  /// Whether a reader that has nothing to do may end; then it must. Another one waits in its place; if that has got something to do just now, and
  /// found no room for one more yet, this one calls for it. Never waits, and allocates nothing: somebody may hold the lock while a thread is made.
  func mayLeave(_ reader: FaultReader) -> Bool {
    let leaves = members.withLockIfAvailable { members in
      guard waiting.load(ordering: .sequentiallyConsistent) > 0, !members.isOver, members.staying > least else {
        return false
      }
      reader.isLeaving.store(true, ordering: .relaxed)
      hasRoom.store(true, ordering: .sequentiallyConsistent)
      if waiting.load(ordering: .sequentiallyConsistent) == 0 { isWanted.store(true, ordering: .sequentiallyConsistent) }
      return true
    }
    return leaves ?? false
  }

  // MARK: For the watchdog

  /// Starts one more if all were at work, or if nobody waits at two looks in a row: the system may have had no thread for another one, or one that
  /// should have rung has ended.
  func grow(for handler: FaultHandler) {
    for thread in members.withLock({ $0.takeGone() }) { thread.join() }
    let isRoom = members.withLock { members in
      let isRoom = members.staying < most
      hasRoom.store(isRoom, ordering: .sequentiallyConsistent)
      return isRoom
    }
    let looks = waiting.load(ordering: .sequentiallyConsistent) == 0 ? looksInVain.load(ordering: .relaxed) + 1 : 0
    looksInVain.store(looks, ordering: .relaxed)
    // Before there is another one, who may ring for the next at once.
    guard isWanted.exchange(false, ordering: .sequentiallyConsistent) || looks >= 2 else { return }
    if isRoom { try? add(to: handler) }
  }

  /// Nobody starts one from here on. Joins all; they have been told to stop.
  func shutDown() {
    let threads = members.withLock { members in
      defer { members.readers = [] }
      members.isOver = true
      return members.readers.map(\.thread)
    }
    for thread in threads { thread.join() }
  }
}
