import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// The reports of this process; for exit tests, as there is one handler.
final class LockReports: Sendable {
  private let list = Mutex<[(report: LockOrder.Report, thread: CInt)]>([])

  /// The process ends after `deadline` seconds: what is reported late may be a deadlock.
  init(deadline: CInt = 60) {
    ct_deadline(deadline)
    LockOrder.setHandler { [weak self] report in self?.list.withLock { $0.append((report, Kernel.threadID)) } }
  }

  /// What has come so far, what is queued included. The calling thread holds nothing.
  var all: [LockOrder.Report] {
    LockOrder.deliver()
    return list.withLock { $0.map(\.report) }
  }
  func clear() {
    _ = all
    list.withLock { $0 = [] }
  }
  /// The threads that the handler ran on.
  var threads: [CInt] { list.withLock { $0.map(\.thread) } }

  /// Waits for a report that somebody else delivers.
  func first() -> LockOrder.Report? {
    _ = spin { list.withLock { !$0.isEmpty } }
    return list.withLock { $0.first?.report }
  }

  /// Checks that `body` is reported once, as `kind`, by this file and the lines that lie so far below `line`.
  func expect(
    _ kind: LockOrder.Report.Kind, held: Int, wanted: Int, line: Int = #line, file: String = #fileID,
    _ body: () throws -> Void
  ) rethrows {
    clear()
    try body()
    let found = all
    check(found.count, is: 1, "\(found) for line \(line)")
    guard let report = found.first else { return }
    check(report.kind, is: kind, "for line \(line)")
    check(report.held.place.line, is: line + held, "held, for line \(line)")
    check(report.wanted.place.line, is: line + wanted, "wanted, for line \(line)")
    check(report.held.place.file, is: file)
    check(report.wanted.place.file, is: file)
    check(report.held.threadID, is: Int(Kernel.threadID))
    check(!report.held.threadName.isEmpty, "a thread name")
    check(!report.advice.isEmpty, "advice")
  }
}

extension LockOrder {
  /// Runs `body` as if it were a callback of that kind.
  static func inCallback<Result>(
    _ kind: CallbackKind, file: StaticString = #fileID, line: UInt = #line, _ body: () throws -> Result
  ) rethrows -> Result {
    enterCallback(kind, at: LockPlace(file: file, line: line))
    defer { leaveCallback() }
    return try body()
  }

  /// Runs `body` with a lock on record that does not exist.
  static func holding<Result>(
    _ rank: LockRank, isExclusive: Bool = false, key: UInt = 0xfff0, file: StaticString = #fileID, line: UInt = #line,
    _ body: () throws -> Result
  ) rethrows -> Result {
    acquired(rank, "test lock", key: key, place: LockPlace(file: file, line: line), isExclusive: isExclusive)
    defer { released(key: key) }
    return try body()
  }

  /// Waits, on record, for a lock that does not exist.
  static func want(_ rank: LockRank, key: UInt = 0xffe0, file: StaticString = #fileID, line: UInt = #line) {
    willAcquire(rank, "other lock", key: key, place: LockPlace(file: file, line: line))
  }
}
