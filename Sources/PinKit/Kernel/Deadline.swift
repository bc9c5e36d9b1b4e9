/// The end of somebody's patience, in time in which this process could run (K5).
///
/// The thread that waits looks at it again and again. What passes between two looks counts in full as long as that is little, and as
/// ``longestStep`` or a sixteenth of the patience where it is more: then the process was stopped (a signal, a debugger, a frozen cgroup), its
/// machine was, or the processor was somebody else's, and whoever is waited for could not run either. So a deadline is over after sixteen looks
/// at the earliest, and a stop of any length costs one of them. Allocates nothing; async-signal-safe.
struct Deadline {
  /// In nanoseconds.
  private static var longestStep: UInt64 { 250_000_000 }

  private var left: UInt64
  private var last: UInt64
  private let step: UInt64

  /// A deadline that is `patience` nanoseconds away; 0 is over at once, `.max` never.
  init(_ patience: UInt64) {
    left = patience
    last = patience == .max ? 0 : Kernel.now()
    step = max(1, min(patience / 16, Self.longestStep))
  }

  init(seconds: Double) { self.init(Kernel.nanoseconds(seconds)) }

  /// Whether the patience has come to its end. To be asked in every turn of the loop that waits.
  mutating func isOver() -> Bool {
    if left == .max { return false }
    let now = Kernel.now()
    left -= min(left, step, now > last ? now - last : 0)
    last = now
    return left == 0
  }
}
