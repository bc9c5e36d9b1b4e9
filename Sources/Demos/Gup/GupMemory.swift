internal import PinKit

/// Memory over a file, as somebody manages it.
protocol GupMemory: AnyObject {
  var name: String { get }
  func bringIn() throws
  /// Where a device may write all pages from now on, until ``unpin()``.
  func pin() throws -> AddressRange
  func unpin() throws
  /// Writes back what it takes for dirty; calls `body` when the pages are chosen, before their bytes are written.
  func writeBack(_ body: @escaping @Sendable () -> Void) throws
  /// Gives up the pages that it takes for clean, and reads them again.
  func dropAndBringIn() throws
  /// What it believes of a page. May be called by `body`, on its thread.
  func state(of page: Int) throws -> GupState
  /// The bytes of all pages, as a program sees them.
  func bytes() throws -> [UInt8]
  /// After each step, for those who look on.
  func passed(_ step: GupStep) throws
  func close() throws
}

/// What a page is taken for.
struct GupState: Hashable, Sendable {
  var isDirty = false
  var isPinned = false
  var isUnderWriteback = false

  var description: String {
    (isUnderWriteback ? "writeback" : isDirty ? "dirty" : "clean") + (isPinned ? ", pinned" : "")
  }
}

/// The four steps, and what comes before and after them.
enum GupStep: Int, CaseIterable, Sendable {
  case begun, firstWrite, writing, written, secondWrite, unpinned, laterWriting, laterWritten, dropped

  var title: String {
    switch self {
    case .begun: "  the pages are brought in"
    case .firstWrite: "1 pinned, a device writes \"first\""
    case .writing: "2 writeback: on its way"
    case .written: "2 writeback: done"
    case .secondWrite: "3 the device writes \"second\""
    case .unpinned: "4 unpinned"
    case .laterWriting: "  the next writeback: on its way"
    case .laterWritten: "  the next writeback: done"
    case .dropped: "  clean pages dropped, read again"
    }
  }
}
