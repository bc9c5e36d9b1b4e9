internal import CUffd

/// What each thread notes, in memory of its own, of the regions that it is accessing, and how others wait for that: a gate is looked at after
/// the note, and changed before the wait, so that one of the two sees the other. No line of memory is written by two threads.
///
/// Async-signal-safe but for a thread's first note.
enum AccessNotes {
  /// Notes that the thread is inside an access to a region, and whether rights must stay as they are until it ends. False where there is no
  /// room. What follows is not moved before it.
  @inline(__always) static func enter(_ region: UInt64, keepsRights: Bool) -> Bool {
    cuffd_access_enter(region << 1 | (keepsRights ? 1 : 0)) != 0
  }
  /// Leaves what was entered last, which had room.
  @inline(__always) static func leave() { cuffd_access_leave() }

  /// Keeps what follows from being moved before what was noted last, as entering does.
  @inline(__always) static func passFence() { cuffd_section_fence() }

  /// For an access without room, which is counted where others find it: the thread knows of it all the same.
  static func enterCounted(_ region: UInt64) { cuffd_access_enter_counted(region) }
  /// Leaves the access that was entered last, which is to the region; false if that had no room.
  @inline(__always) static func leave(_ region: UInt64) -> Bool { cuffd_access_leave_region(region) != 0 }

  /// Whether the calling thread is inside an access to the region.
  static func isInside(_ region: UInt64) -> Bool { cuffd_access_is_mine(region) != 0 }

  /// Waits until no other thread is inside an access to the region that is noted: any, or one that keeps rights. False if one still is after
  /// `patience` nanoseconds.
  static func waitUntilEmpty(_ region: UInt64, keepingRights: Bool, patience: UInt64) -> Bool {
    cuffd_access_wait(region, keepingRights ? 1 : 0, patience) != 0
  }
}
