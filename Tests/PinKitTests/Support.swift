import Testing

@testable import PinKit

enum Mechanisms {
  static let all: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .asynchronous, .mprotect]
  static let synchronous: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .mprotect]
}

extension Region {
  /// Writes `byte` to the first byte of every page.
  func fill(with byte: UInt8) throws {
    try unsafe withUnsafeMutableBytes { bytes in
      for page in 0..<pageCount { unsafe bytes[page * pageSize] = byte }
    }
  }
}
