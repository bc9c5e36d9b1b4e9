internal import Synchronization

/// Mappings that are locked, so that they need not be watched for removals.
///
/// What the kernel announces of a removal costs whoever drops a mapping himself a thread and some 10 µs, and sealing drops mappings all the
/// time. Memory that is locked refuses `MADV_REMOVE`, which alone takes a page of the pool its bytes, with `EINVAL`; PinKit's own drops are
/// `MADV_DONTNEED_LOCKED`. A page is locked while it is mapped: so open pages of a region with a sealer are in no swap either.
extension FaultDomain {
  /// Locks the mapping, before it is registered with a userfaultfd. False where that takes from what the program may lock (K7), or cannot be had.
  func lockMapping() -> Bool {
    guard Memory.mayLockAll, Memory.lockOnFault(addresses) == 0 else { return false }
    isLocked.store(true, ordering: .sequentiallyConsistent)
    isLockedWhole.store(true, ordering: .sequentiallyConsistent)
    return true
  }

  /// Locks what has been mapped anew, if the process still may. For the fault path, with the pages claimed.
  func lockAgain(_ range: AddressRange) {
    guard isLocked.load(ordering: .relaxed), Memory.lockOnFault(range) != 0 else { return }
    isLockedWhole.store(false, ordering: .sequentiallyConsistent)
  }

  /// Sees whether other code has unlocked the mapping, with munlockall(2) say. It may have removed pages since, which nobody was told of: all
  /// count as dropped then, and what they owe to snapshots is lost. The wrprotect lock is held exclusively, or shared with the first page claimed.
  func checkLock() {
    guard isLockedWhole.load(ordering: .relaxed), !isStillLocked else { return }
    // First: what is removed from here on is refused, or was removed before.
    if Memory.lockOnFault(addresses) != 0 { isLockedWhole.store(false, ordering: .relaxed) }
    wasUnlocked.store(true, ordering: .relaxed)
    recordDiscard(addresses, keepsBefore: keepsEnded.load(ordering: .acquiring))
  }

  /// Where it is not, the page's mapping is gone, and comes back at the next touch.
  private var isStillLocked: Bool {
    Memory.adviseResult(AddressRange(start: addresses.start, count: pageSize), .dontNeedUnlocked) != 0
  }
}
