import Testing

@testable import PinKit

enum Mechanisms {
  static let all: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .asynchronous, .mprotect]
  static let synchronous: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .mprotect]
}

extension Test {
  /// Skips what is running, a test or one of its cases, where there is an obstacle to it: what this machine lacks.
  ///
  /// A case that is cancelled goes without a word; a warning names it, and why.
  static func skip(if obstacle: String?, sourceLocation: SourceLocation = #_sourceLocation) throws {
    guard let obstacle else { return }
    if Case.current?.isParameterized == true {
      Issue.record("skipped: \(obstacle)", severity: .warning, sourceLocation: sourceLocation)
    }
    try cancel("\(obstacle)", sourceLocation: sourceLocation)
  }

  /// Says that what is running goes on without a part of it where there is an obstacle to that part.
  static func leaveOut(_ part: String, if obstacle: String?, sourceLocation: SourceLocation = #_sourceLocation) {
    guard let obstacle else { return }
    Issue.record("skipped: \(part): \(obstacle)", severity: .warning, sourceLocation: sourceLocation)
  }
}

extension Trait where Self == ConditionTrait {
  /// Skips, and says why, where there is an obstacle.
  static func skipped(if obstacle: @autoclosure @escaping @Sendable () -> String?) -> Self {
    let obstacle = obstacle()
    return .enabled(if: obstacle == nil, "\(obstacle ?? "")")
  }
}

extension Region {
  /// Writes `byte` to the first byte of every page.
  func fill(with byte: UInt8) throws {
    try unsafe withUnsafeMutableBytes { bytes in
      for page in 0..<pageCount { unsafe bytes[page * pageSize] = byte }
    }
  }
}
