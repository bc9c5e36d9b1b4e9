internal import Synchronization

/// One userfaultfd of a region, by its numbers: what is registered with it is a slice of the region, or all of it.
struct FaultChannel: ~Copyable, Sendable {
  /// The userfaultfd, or -1.
  let descriptor = Atomic<CInt>(-1)
  /// A second descriptor of the same userfaultfd: closing one number by mistake does not end the protection.
  let spareDescriptor = Atomic<CInt>(-1)
  /// Which file both stand for: device and inode. Stored before the numbers and read after them, so never older than the number that is looked at.
  private let ownDevice = Atomic<UInt64>(0)
  private let ownInode = Atomic<UInt64>(0)
  /// How many readers are at it. More than two only stand in one another's way in the kernel; who is one too many, or too few, is so for a while.
  let readers = Atomic<Int>(0)
  static let mostReaders = 2
  /// The watchdog's.
  private let alarm: Alarm

  init(alarm: Alarm) { self.alarm = alarm }

  /// The number under which it was put into the readers' epoll set.
  var listening: CInt { descriptor.load(ordering: .acquiring) }

  /// Goes by two numbers of a new userfaultfd from now on.
  func take(_ descriptor: CInt, spare: CInt) {
    if let found = FileIdentity(of: descriptor)?.words {
      ownDevice.store(found.device, ordering: .relaxed)
      ownInode.store(found.inode, ordering: .relaxed)
    }
    self.descriptor.store(descriptor, ordering: .sequentiallyConsistent)
    spareDescriptor.store(spare, ordering: .sequentiallyConsistent)
  }

  /// Forgets its numbers, and returns them.
  func giveUp() -> [CInt] {
    [
      descriptor.exchange(-1, ordering: .sequentiallyConsistent),
      spareDescriptor.exchange(-1, ordering: .sequentiallyConsistent),
    ]
  }

  /// Whether a number stands for the userfaultfd, and not for what other code has opened since. One fstat(2); async-signal-safe.
  @inline(__always) func isOwn(_ descriptor: CInt) -> Bool {
    let identity = FileIdentity(device: ownDevice.load(ordering: .relaxed), inode: ownInode.load(ordering: .relaxed))
    return identity.isOf(descriptor)
  }

  /// The number, or that of the spare if it was closed; `nil` if both were.
  var anyDescriptor: CInt? {
    let (now, spare) = (descriptor.load(ordering: .acquiring), spareDescriptor.load(ordering: .acquiring))
    return isOwn(now) ? now : isOwn(spare) ? spare : nil
  }

  /// Whether there is a userfaultfd to read from; if need be the spare. True as well where there is none, not yet or not any more.
  func hasDescriptor() -> Bool {
    let now = descriptor.load(ordering: .acquiring)
    return now < 0 || isOwn(now) || useSpareDescriptor(insteadOf: now)
  }

  /// Takes the spare in the place of `closed`, a descriptor that turned out closed, unless somebody was faster; false if there is none.
  /// Async-signal-safe.
  func useSpareDescriptor(insteadOf closed: CInt) -> Bool {
    let spare = spareDescriptor.load(ordering: .sequentiallyConsistent)
    if descriptor.load(ordering: .sequentiallyConsistent) != closed { return true }
    guard spare != closed, isOwn(spare) else { return false }
    let isMine = descriptor.compareExchange(expected: closed, desired: spare, ordering: .sequentiallyConsistent).exchanged
    // In this order, or another thread would find neither.
    if isMine { _ = spareDescriptor.compareExchange(expected: spare, desired: -1, ordering: .sequentiallyConsistent) }
    Alarm.ring(alarm)
    return true
  }

  /// What has become of the two numbers.
  enum Repair {
    case whole
    /// There is a new spare, or none to be had.
    case repaired
    /// The spare has taken the number's place.
    case taken
    /// Both are closed.
    case lost
  }

  /// Looks at both numbers, and makes a new spare in the place of one that is gone. One caller at a time.
  func repair() -> Repair {
    let (now, spare) = (descriptor.load(ordering: .acquiring), spareDescriptor.load(ordering: .acquiring))
    if now < 0 { return .whole }
    let hasOne = isOwn(now)
    if hasOne, isOwn(spare) { return .whole }
    if !hasOne, !useSpareDescriptor(insteadOf: now) { return .lost }
    let good = descriptor.load(ordering: .acquiring)
    let isRepaired = renewSpare(of: good)
    return !hasOne ? .taken : isRepaired ? .repaired : .whole
  }

  private func renewSpare(of good: CInt) -> Bool {
    guard let new = try? Uffd.duplicate(good) else { return false }
    do throws(PinError) { try Uffd.closeInChild(new) } catch {
      Uffd.close(new)
      return false
    }
    spareDescriptor.store(new, ordering: .sequentiallyConsistent)
    return true
  }

  /// Makes a call on the userfaultfd, and once more by the spare if the number turns out closed.
  @inline(__always) func call(_ body: (CInt) -> UffdResult) -> UffdResult {
    while true {
      let descriptor = descriptor.load(ordering: .acquiring)
      let result = body(descriptor)
      guard result == .refused(errno: UffdResult.badDescriptor), useSpareDescriptor(insteadOf: descriptor) else {
        return result
      }
    }
  }
}
