internal import Synchronization

/// Who has a subscriber's mutex, for reports: read by others without synchronization beyond that of each field.
///
/// Whoever reads it is about to wait for the mutex, and whoever writes it has the mutex: so it is there. The owner may change
/// meanwhile; a report says what was so at one moment or the next.
@safe struct MutexOwner: ~Copyable, Sendable {
  typealias Pointer = UnsafeMutablePointer<MutexOwner>

  private let thread = Atomic<UInt32>(0)
  private let place = Atomic<UInt64>(0)
  private let waitPlace = Atomic<UInt64>(0)
  /// The address of a constant string.
  private let waitName = Atomic<UInt>(0)

  static func make() -> Pointer {
    let pointer = Pointer.allocate(capacity: 1)
    unsafe pointer.initialize(to: MutexOwner())
    return unsafe pointer
  }

  func begin(_ place: LockPlace) {
    self.place.store(place.rawValue, ordering: .relaxed)
    thread.store(LockRecord.threadID, ordering: .releasing)
  }

  func end() {
    thread.store(0, ordering: .relaxed)
    waitPlace.store(0, ordering: .relaxed)
  }

  func beginWaiting(_ what: StaticString, _ place: LockPlace) {
    waitName.store(UInt(bitPattern: unsafe what.utf8Start), ordering: .relaxed)
    waitPlace.store(place.rawValue, ordering: .releasing)
  }

  func endWaiting() { waitPlace.store(0, ordering: .relaxed) }

  /// All of it, at one moment or the next.
  struct State {
    /// 0 if nobody has the mutex.
    var thread: UInt32 = 0
    /// Where it was taken.
    var place = LockPlace(rawValue: 0)
    /// What the owner waits for, as the address of a constant string, and where; zeros if it does not.
    var waitName: UInt = 0
    var waitPlace = LockPlace(rawValue: 0)
  }

  var state: State {
    let thread = thread.load(ordering: .acquiring)
    guard thread != 0 else { return State() }
    let waitPlace = LockPlace(rawValue: waitPlace.load(ordering: .acquiring))
    return State(
      thread: thread, place: LockPlace(rawValue: place.load(ordering: .relaxed)),
      waitName: waitName.load(ordering: .relaxed), waitPlace: waitPlace)
  }
}

extension LockRecord.Held {
  /// The owner of a subscriber's mutex that the thread holds: its address is the key.
  var owner: MutexOwner.Pointer? {
    rank == .subscriberMutex && !isCallback ? unsafe MutexOwner.Pointer(bitPattern: key) : nil
  }
}
