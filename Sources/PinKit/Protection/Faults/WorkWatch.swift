/// Notices that a thread has been at one piece of work for longer than somebody's patience, in time in which the process could run. For
/// the watchdog, which looks every 200 ms.
struct WorkWatch {
  private var since: UInt64 = 0
  private var deadline = Deadline(.max)
  private var isSaid = false

  /// True once for each piece of work that takes longer than `patience` nanoseconds; `since` is the number it goes by, when it was begun,
  /// or 0 where there is none.
  mutating func isOverdue(_ since: UInt64, patience: UInt64) -> Bool {
    if since != self.since {
      self.since = since
      deadline = Deadline(since == 0 ? .max : patience)
      isSaid = false
    }
    guard !isSaid, deadline.isOver() else { return false }
    isSaid = true
    return true
  }
}
