import Guest
import Testing

@testable import PinKit

extension Trait where Self == ConditionTrait {
  /// Skips, and says why, where no guest can run.
  static var needsKVM: Self {
    .skipped(if: GuestMachine.unavailable)
  }
}

/// How a guest's memory is protected; without a mechanism, not at all.
struct Guarded: Sendable, CustomTestStringConvertible {
  let mechanism: WriteTracking.Mechanism?
  let subject: Subject

  var testDescription: String { "\(mechanism?.rawValue ?? "nothing") on \(subject.rawValue)" }

  static let own: [Guarded] = [Subject.anonymous, .pool].flatMap { subject in
    [nil, .handlerThread, .inPlace, .asynchronous, .mprotect].map { Guarded(mechanism: $0, subject: subject) }
  }
}

extension Subject {
  /// Memory for a guest and so many pages behind its own, 16 if they are huge, which are few.
  func withGuestMemory(pages: Int, _ body: (Region) throws -> Void) throws {
    let space = try AddressSpace.forTests()
    try with(space, pages: self == .hugetlb ? 1 + min(pages, 4) : 4 + pages, body)
    try space.close()
  }
}

extension Region {
  /// The pages that a guest may write.
  var guestPages: Range<Int> { GuestMachine.bootPages(of: self)..<pageCount }

  /// The first word of each page.
  func firstWords() throws -> [UInt64] {
    try (0..<pageCount).map { try load(fromByteOffset: $0 * pageSize) }
  }
}

extension GuestThread {
  /// Waits until it has come by every page once more.
  func goRound() -> Bool {
    // It may have come past its horizon since that was read.
    let (ahead, behind) = (horizon, progress)
    return advance((ahead > behind ? ahead - behind : 0) + UInt64(walk.wordCount))
  }

  /// Waits until it has made `count` more stores than it had at the call.
  func advance(_ count: UInt64) -> Bool {
    let goal = progress + count
    return spin { progress >= goal || failure != nil } && failure == nil
  }
}
