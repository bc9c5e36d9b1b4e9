/// The order in which locks are taken, outermost first: the one place where it is written down (N8).
///
/// 1. ``subscriberMutex``: a subscriber's own mutex, such as the queue mutex of a device (``OrderedMutex``). Faults may be taken under it.
/// 2. ``wrprotect``: a region's wrprotect lock, shared by faults, exclusive for whatever changes protection.
/// 3. ``page``: the claim of a page, and the page lock of its frame.
/// 4. ``pageTable``: spins. From here on the context is *atomic*: nothing below may block.
/// 5. ``subscriberSpin``: a subscriber's spin lock inside `invalidateRange` (``OrderedSpinLock``).
///
/// A thread waits only for locks of a higher rank than all that it holds. Two exceptions: whoever *tries* and does not wait may try
/// anything; and of the pages of one region several may be waited for, in ascending order, or in any order by whoever holds the region's
/// wrprotect lock exclusively, as nobody else has a page then.
///
/// A callback of a subscriber counts as if it held what its caller may hold: `invalidateRangeStart` and `invalidateRangeEnd` the page
/// lock and what is above it, `invalidateRange` the page-table lock. So a callback must not wait for a subscriber's mutex: whoever
/// has that may be in a fault, which waits for what the caller of the callback holds. It tries, and returns `.wouldBlock` if it
/// cannot have it.
///
/// ``LockOrder`` checks this at run time.
public enum LockRank: UInt8, Sendable, Hashable, Comparable, CaseIterable, CustomStringConvertible {
  case subscriberMutex = 1
  case wrprotect
  case page
  case pageTable
  case subscriberSpin

  public static func < (first: LockRank, second: LockRank) -> Bool { first.rawValue < second.rawValue }

  /// Whether nothing may block while a lock of this rank is held.
  public var isAtomic: Bool { self >= .pageTable }

  public var description: String {
    switch self {
    case .subscriberMutex: "subscriber's mutex"
    case .wrprotect: "wrprotect lock"
    case .page: "page lock"
    case .pageTable: "page-table lock"
    case .subscriberSpin: "subscriber's spin lock"
    }
  }
}
