internal import CUffd
internal import Synchronization

/// Short sections of code in which an object stays as it is; entering and leaving is two plain stores to memory of the thread's own.
///
/// Whoever changes the object makes the change visible first, and then waits here until nobody is inside who may have missed it.
/// Readers never wait. Async-signal-safe but for ``enter(_:)`` of a thread's first section.
enum CriticalSection {
  /// Enters; false if the thread is inside too many sections, or a thousand threads are inside some. Look at the object after this, not
  /// before. `region` is the id of the region that it belongs to.
  @inline(__always) static func enter(_ object: UInt, of region: UInt64) -> Bool {
    cuffd_section_enter(UInt64(object), region) != 0
  }
  /// Leaves the section that was entered last.
  @inline(__always) static func leave() { cuffd_section_leave() }
  /// Whether the thread could enter one more.
  static var hasRoom: Bool { cuffd_section_has_room() != 0 }

  /// Whether the calling thread is inside.
  static func isInside(_ object: UInt) -> Bool { cuffd_section_is_mine(UInt64(object)) != 0 }
  /// Whether the calling thread is inside any section at all.
  @inline(__always) static var isInsideAny: Bool { cuffd_section_is_any_mine() != 0 }
  /// Whether the calling thread is inside a section of a region: what changes the region may wait for it.
  @inline(__always) static func isInside(region: UInt64) -> Bool { isInsideAny && cuffd_section_is_of(region) != 0 }

  static func requireRoom(_ operation: String, _ addresses: AddressRange) throws(PinError) {
    if hasRoom { return }
    throw PinError(
      .limitReached, operation: operation, range: addresses,
      advice: "The thread is inside seven mirrors or mappings, or a thousand threads use some.")
  }

  /// Waits until no other thread is inside that came before this call; for at most `patience` nanoseconds. False if one still is.
  static func waitUntilEmpty(_ object: UInt, patience: UInt64) -> Bool {
    cuffd_section_wait(UInt64(object), patience) != 0
  }
}

/// For how long a change waits for readers, in nanoseconds.
///
/// Where nobody should be kept waiting that is next to nothing at first. A reader that lost its processor needs a while to leave, though,
/// and where there are more readers than processors there is always one: each time in a row that it was not enough, it is more.
struct ReaderPatience: ~Copyable, Sendable {
  private static let blockable: UInt64 = 1_000_000_000
  private static let shortest: UInt64 = 50_000
  private static let longest: UInt64 = 100_000_000
  /// Seen late, or lost, one makes a wait shorter or longer, nothing else.
  private let refusals = Atomic<UInt64>(0)

  /// Waits until nobody is inside `object` who was before; false if that takes too long.
  func waitUntilEmpty(_ object: UInt, isBlockable: Bool, isLast: Bool = false) -> Bool {
    // The memory goes, whoever would like to stay.
    if isLast { return CriticalSection.waitUntilEmpty(object, patience: .max) }
    if isBlockable { return CriticalSection.waitUntilEmpty(object, patience: Self.blockable) }
    let patience = min(Self.shortest << min(refusals.load(ordering: .relaxed), 16), Self.longest)
    let isEmpty = CriticalSection.waitUntilEmpty(object, patience: patience)
    if isEmpty { refusals.store(0, ordering: .relaxed) } else { refusals.add(1, ordering: .relaxed) }
    return isEmpty
  }
}

/// A lock that spins, for a few instructions at a time; async-signal-safe. Whoever holds it must not fault.
@safe final class SpinLock: @unchecked Sendable {
  private let word: UnsafeMutablePointer<cuffd_wplock>

  init() {
    unsafe word = .allocate(capacity: 1)
    unsafe word.initialize(to: cuffd_wplock(state: 0, writers: 0, reserved: 0))
  }
  deinit { unsafe word.deallocate() }

  /// Signals are the caller's to block, where a handler may want the lock.
  @inline(__always) func withLock<Result>(_ body: () -> Result) -> Result {
    while unsafe cuffd_wplock_try_exclusive(word) == 0 { Kernel.relax() }
    defer { unsafe cuffd_wplock_unlock_exclusive(word) }
    return body()
  }
}
