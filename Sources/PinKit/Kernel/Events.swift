internal import CUffd
internal import Synchronization
internal import SystemPackage

/// A descriptor of which device and inode say nothing, as all epoll sets and eventfds have the same; and a spare of it. It is told from
/// others by a mark, and where something looked wrong by kcmp(2) with its spare, if that is allowed (K5).
@safe struct MarkedDescriptor: ~Copyable, Sendable {
  /// What became of the two numbers.
  enum Outcome: Sendable { case whole, repaired, lost }

  private let number = Atomic<CInt>(-1)
  private let spare = Atomic<CInt>(-1)
  private let tookSpare = Atomic<Bool>(false)
  /// A number or mark looked wrong since the last look at both.
  private let isSuspicious = Atomic<Bool>(false)
  /// Stored before the numbers and read after them, so never older than the number that is looked at.
  private let owner = Atomic<CInt>(-1)
  private let mark = Self.nextMark()
  private let identity: FileIdentity

  private static let marks = Atomic<CInt>(0)
  private static func nextMark() -> CInt { CInt(UInt32(bitPattern: marks.add(1, ordering: .relaxed).oldValue) % 31) }

  init(_ made: CInt, _ operation: String) throws(PinError) {
    let made = CInt(try PinError.check(made, operation))
    guard let found = FileIdentity(of: made) else { throw .kernel(-9, operation) }
    identity = found
    use(made)
  }

  private func use(_ made: CInt) {
    owner.store(cuffd_mark(made, mark), ordering: .relaxed)
    number.store(made, ordering: .sequentiallyConsistent)
    // Without a spare it goes on as well.
    spare.store(max(-1, cuffd_duplicate(made)), ordering: .sequentiallyConsistent)
  }

  deinit {
    let (first, second) = (number.load(ordering: .acquiring), spare.load(ordering: .acquiring))
    if isOwn(first) { cuffd_close(first) }
    if second != first, isOwn(second) { cuffd_close(second) }
  }

  private func isOwn(_ number: CInt) -> Bool {
    number >= 0 && identity.hasMark(number, mark, owner: owner.load(ordering: .relaxed))
  }

  /// The number without a look at it: for calls that fail harmlessly on another file.
  var unchecked: CInt { number.load(ordering: .acquiring) }
  /// The number, after one quick look; -1 if both are gone.
  var current: CInt {
    let now = unchecked
    return cuffd_seems_marked(now, mark) != 0 ? now : checked
  }
  /// The number, after a close look; -1 if both are gone.
  var checked: CInt {
    let now = unchecked
    if isOwn(now) { return now }
    isSuspicious.store(true, ordering: .sequentiallyConsistent)
    let other = spare.load(ordering: .acquiring)
    guard other != now, isOwn(other) else { return -1 }
    tookSpare.store(true, ordering: .sequentiallyConsistent)
    _ = number.compareExchange(expected: now, desired: other, ordering: .sequentiallyConsistent)
    return other
  }

  /// Looks at both, and makes a new spare if one is gone. One caller at a time.
  func repair() -> Outcome {
    let (first, second) = (unchecked, spare.load(ordering: .acquiring))
    let (hasFirst, hasSecond) = (isOwn(first), second != first && isOwn(second))
    if hasFirst, hasSecond {
      // Without a reason kcmp(2) is not called: a filter may end the process for it. Where it is forbidden the marks are all there is to go by.
      let isDoubtful =
        isSuspicious.exchange(false, ordering: .sequentiallyConsistent) || owner.load(ordering: .relaxed) < 0
      return isDoubtful && cuffd_same_file(first, second) == 0 ? .lost : .whole
    }
    if !hasFirst || second >= 0 { isSuspicious.store(true, ordering: .sequentiallyConsistent) }
    guard hasFirst || hasSecond else { return .lost }
    let good = hasFirst ? first : second
    number.store(good, ordering: .sequentiallyConsistent)
    spare.store(max(-1, cuffd_duplicate(good)), ordering: .sequentiallyConsistent)
    let wasTaken = tookSpare.exchange(false, ordering: .sequentiallyConsistent)
    // There may have been no room for a spare before.
    return wasTaken || !hasFirst || second >= 0 ? .repaired : .whole
  }

  /// Puts a new file in the place of one that is lost. False if there is none to be had.
  func replace(_ made: CInt) -> Bool {
    guard made >= 0 else { return false }
    use(made)
    return true
  }
}

/// An epoll set.
struct EventSet: ~Copyable, Sendable {
  private let kept: MarkedDescriptor
  init() throws(PinError) { kept = try MarkedDescriptor(cuffd_epoll_create(), "epoll_create1") }

  /// Reports `fd` while it is readable to every thread that waits; or, `once`, to one thread, until ``rearm(_:data:)``.
  func add(_ fd: CInt, data: UInt64, once: Bool) throws(PinError) {
    let set = kept.checked
    let result = cuffd_epoll_set(set, fd, data, once ? 1 : 0, 0)
    // Whoever looks over all descriptors has put it in already.
    if result == -Errno.fileExists.rawValue, once, cuffd_epoll_set(set, fd, data, 1, 1) == 0 { return }
    try PinError.check(result, "epoll_ctl(ADD)")
  }
  /// Reports `fd` once more as soon as it is readable.
  func rearm(_ fd: CInt, data: UInt64) {
    // A set of the program's own does not have it, and stays as it is.
    if cuffd_epoll_set(kept.unchecked, fd, data, 1, 1) == 0 { return }
    let set = kept.checked
    if set < 0 || cuffd_epoll_set(set, fd, data, 1, 1) == 0 { return }
    // The set knows a file by its number: a spare descriptor that took over is new to it.
    _ = cuffd_epoll_set(set, fd, data, 1, 0)
  }
  func remove(_ fd: CInt) { _ = cuffd_epoll_remove(kept.checked, fd) }

  /// Waits for at most `milliseconds`; returns the data of one that is ready, or `nil`, also when interrupted. One at a time: what else is ready
  /// is for whoever else waits.
  func wait(milliseconds: CInt) -> UInt64? {
    let set = kept.current
    guard set >= 0 else {
      // The watchdog makes a new one.
      Kernel.pause(nanoseconds: 1_000_000)
      return nil
    }
    var data: UInt64 = 0
    return unsafe cuffd_epoll_wait(set, &data, milliseconds) > 0 ? data : nil
  }

  func repair() -> MarkedDescriptor.Outcome { kept.repair() }
  /// An empty one in the place of one that is lost.
  func replace() -> Bool { kept.replace(cuffd_epoll_create()) }
}

/// An eventfd: wakes the threads that wait in an ``EventSet``.
struct EventDescriptor: ~Copyable, Sendable {
  private let kept: MarkedDescriptor
  init() throws(PinError) { kept = try MarkedDescriptor(cuffd_eventfd(), "eventfd") }
  /// -1 if other code has closed it.
  var descriptor: CInt { kept.checked }
  func signal() {
    let number = kept.checked
    if number >= 0 { _ = cuffd_eventfd_signal(number) }
  }
  func repair() -> MarkedDescriptor.Outcome { kept.repair() }
  func replace() -> Bool { kept.replace(cuffd_eventfd()) }
}

/// Wakes the threads that wait for it. A word of memory, and no descriptor, which other code could close.
@safe struct Bell: ~Copyable, @unchecked Sendable {  // the word is atomic
  private let word: UnsafeMutablePointer<Atomic<UInt32>>

  init() {
    unsafe word = .allocate(capacity: 1)
    unsafe word.initialize(to: Atomic(0))
  }

  deinit {
    unsafe word.deinitialize(count: 1)
    unsafe word.deallocate()
  }

  /// To ring it from the fault path, as long as the bell lives.
  var alarm: Alarm { unsafe Alarm(word) }
  func signal() { Alarm.ring(alarm) }
  func drain() { unsafe word.pointee.store(0, ordering: .sequentiallyConsistent) }

  /// True if it was rung since it was last drained; waits for at most `milliseconds`, -1: without end.
  func wait(milliseconds: CInt) -> Bool {
    if unsafe word.pointee.load(ordering: .sequentiallyConsistent) != 0 { return true }
    unsafe Futex.wait(UnsafeRawPointer(word), while: 0, milliseconds: milliseconds)
    return unsafe word.pointee.load(ordering: .sequentiallyConsistent) != 0
  }
}

/// A bell that may be rung anywhere: async-signal-safe.
@safe struct Alarm: @unchecked Sendable {  // the word is atomic
  private let word: UnsafeMutablePointer<Atomic<UInt32>>
  fileprivate init(_ word: UnsafeMutablePointer<Atomic<UInt32>>) { unsafe self.word = word }

  static func ring(_ alarm: Alarm) {
    // Whoever sleeps found it silent: where it rings already, all are awake.
    guard unsafe alarm.word.pointee.exchange(1, ordering: .sequentiallyConsistent) == 0 else { return }
    unsafe Futex.wakeAll(UnsafeRawPointer(alarm.word))
  }
}
