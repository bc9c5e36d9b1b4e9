internal import CFloor

/// Secrets that are known masked only: each byte exclusive-or ``mask``. What is looked for would be found here otherwise.
struct SealNeedles: Sendable {
  /// In bytes.
  static let size = 32
  let masked: [[UInt8]]
  let mask: UInt8

  init(count: Int) {
    mask = .random(in: 1 ... .max)
    masked = (0..<count).map { _ in (0..<Self.size).map { _ in UInt8.random(in: .min ... .max) } }
  }

  /// From ``text``; `nil` if it is none.
  init?(_ text: String) {
    let digits = Array(text.utf8).map { UInt8($0 >= 97 ? $0 - 87 : $0 &- 48) }
    guard digits.count % 2 == 0, digits.count / 2 % Self.size == 1, digits.allSatisfy({ $0 < 16 }) else { return nil }
    let bytes = stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    mask = bytes[0]
    masked = stride(from: 1, to: bytes.count, by: Self.size).map { Array(bytes[$0..<$0 + Self.size]) }
  }

  /// For another process.
  var text: String {
    ([mask] + masked.joined()).map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
  }

  /// Which of the secrets are in `bytes`, each as often as it is.
  func found(in bytes: UnsafeRawBufferPointer) -> [Int] {
    guard let start = bytes.baseAddress else { return [] }
    return masked.indices.flatMap { index in
      let hits = unsafe cfloor_find_masked(start, bytes.count, masked[index], Self.size, mask)
      return repeatElement(index, count: hits)
    }
  }
}
