internal import Logging
internal import Synchronization

/// Violations are found where nothing may be said of them: in a signal handler, with a page claimed. They wait in a small ring for a
/// thread that holds nothing: the one that lets go of its outermost ``OrderedMutex`` or makes a call that may block, or the watchdog.
extension LockOrder {
  private static let handler = Mutex<(@Sendable (Report) -> Void)?>(nil)

  /// Says where reports go; `nil`: to the log, as critical, with the label `pinkit.lockcheck`, a line for each place.
  ///
  /// The handler runs on a thread of the program that holds no lock of the order, or on PinKit's watchdog thread a fifth of a second later at
  /// most. It may allocate, lock and log, and should not call PinKit.
  public static func setHandler(_ handler: (@Sendable (Report) -> Void)?) {
    self.handler.withLock { $0 = handler }
  }

  /// Delivers what is queued if the thread holds nothing and is in nobody's callback.
  @inline(__always) static func deliverIfIdle() {
    if LockRecord.hasViolations, LockRecord.count == 0, !isInCallback, !Kernel.isInFaultPath { deliver() }
  }

  /// Delivers what is queued. Not for signal handlers, and not with a lock held.
  static func deliver() {
    guard LockRecord.hasViolations else { return }
    let isFatal = LockRecord.mode == fatal
    while let violation = unsafe LockRecord.take() {
      let report = unsafe Report(violation)
      if let handler = handler.withLock({ $0 }) { handler(report) } else { log(report) }
    }
    if isFatal { Kernel.die("PinKit: the lock order was violated, and PINKIT_LOCKCHECK is \"fatal\"") }
  }

  /// The mode in which a violation ends the process.
  static var fatal: Int32 { 2 }

  private static func log(_ report: Report) {
    let logger = Logger(label: "pinkit.lockcheck")
    for line in report.lines { logger.critical("\(line)") }
  }
}
