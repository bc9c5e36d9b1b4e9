/// 128 bits as 32 digits, most significant first.
enum Hexadecimal {
  static func text(_ high: UInt64, _ low: UInt64) -> String {
    [high, low].map { half in
      let digits = String(half, radix: 16)
      return String(repeating: "0", count: 16 - digits.count) + digits
    }.joined()
  }

  static func read(_ text: String) -> (high: UInt64, low: UInt64)? {
    guard text.utf8.count == 32 else { return nil }
    var halves: [UInt64] = [0, 0]
    for (index, character) in text.utf8.enumerated() {
      let digit: UInt8
      switch character {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = character - UInt8(ascii: "0")
      case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = character - UInt8(ascii: "a") + 10
      default: return nil
      }
      halves[index / 16] = halves[index / 16] << 4 | UInt64(digit)
    }
    return (halves[0], halves[1])
  }
}

extension Checksum: CustomStringConvertible {
  init?(_ description: String) {
    guard let (high, low) = Hexadecimal.read(description) else { return nil }
    self.init(high: high, low: low)
  }

  var description: String { Hexadecimal.text(high, low) }
}
