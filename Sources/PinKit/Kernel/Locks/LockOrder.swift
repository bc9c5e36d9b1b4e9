/// The order of locks, checked while the program runs (N8); ``LockRank`` says what the order is.
///
/// In debug builds it is always checked; in release builds if the environment variable `PINKIT_LOCKCHECK` is `1` when the process starts,
/// and otherwise it costs one load of a global for each lock. With `PINKIT_LOCKCHECK=fatal` the process aborts after the first
/// report. A violation becomes a ``Report``, which names both places, whether or not anything went wrong this time; each pair of places
/// is reported once. ``setHandler(_:)`` says where reports go.
///
/// What is checked:
/// - that a thread waits for no lock of a lower rank than one that it holds, and for none of the same rank where that is not
///   allowed;
/// - that nothing blocks in atomic context: with a page-table lock or an ``OrderedSpinLock`` held, or inside `invalidateRange`;
/// - that no callback of a subscriber waits for an ``OrderedMutex``, or makes a call that waits for the callback.
///
/// Recording takes no lock and allocates nothing, as it happens in signal handlers (K2).
public enum LockOrder {
  /// Whether anything is recorded.
  @inline(__always) static var isOn: Bool { LockRecord.mode != 0 }

  // MARK: Recording

  /// To be called before waiting for a lock: this is where violations are found, so that one that deadlocks is reported too.
  ///
  /// - Parameters:
  ///   - key: Tells the lock from others, or the table that it is in.
  ///   - index: Which lock of the table.
  ///   - owner: Whose it is, where that is known.
  @inline(never) static func willAcquire(
    _ rank: LockRank, _ name: StaticString, key: UInt, index: Int = 0, owner: MutexOwner.State = .init(),
    place: LockPlace
  ) {
    guard let (kind, held) = violation(rank, key: key, index: index) else { return }
    LockRecord.note(kind.rawValue, held, name, place, rank: rank, owner: owner)
  }

  /// To be called with the lock in hand, also after a try.
  @inline(never) static func acquired(
    _ rank: LockRank, _ name: StaticString, key: UInt, index: Int = 0, place: LockPlace, isExclusive: Bool = false
  ) {
    LockRecord.push(rank, name, key: key, index: index, place: place, flags: isExclusive ? LockRecord.exclusive : 0)
  }

  @inline(never) static func released(key: UInt) { LockRecord.pop(key: key) }

  // MARK: The rules

  /// What waiting for such a lock now would violate, and which lock stands against it.
  private static func violation(
    _ rank: LockRank, key: UInt, index: Int
  ) -> (kind: Report.Kind, held: LockRecord.Held)? {
    var isAlone = false
    LockRecord.forEach { if $0.isExclusive { isAlone = true } }
    var callback: LockRecord.Held?
    var highest: (rank: LockRank, held: LockRecord.Held)?
    LockRecord.forEach { lock in
      guard let heldRank = lock.rank else { return }
      if lock.isCallback { callback = lock }
      guard heldRank > rank || (heldRank == rank && !mayFollow(lock, rank, key: key, index: index, isAlone: isAlone)) else {
        return
      }
      if highest == nil || heldRank > highest!.rank { highest = (heldRank, lock) }
    }
    guard let highest else { return nil }
    if rank == .subscriberMutex, let callback { return (.mutexInCallback, callback) }
    return (highest.rank.isAtomic && !rank.isAtomic ? .blockingInAtomicContext : .againstOrder, highest.held)
  }

  /// Whether a lock of the same rank may be waited for under `held`: pages of one table in ascending order, and in any order by whoever
  /// has the wrprotect lock alone.
  private static func mayFollow(
    _ held: LockRecord.Held, _ rank: LockRank, key: UInt, index: Int, isAlone: Bool
  ) -> Bool {
    rank == .page && !held.isCallback && (isAlone || (held.key == key && index > held.highest))
  }
}
