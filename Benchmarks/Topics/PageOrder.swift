/// In what order pages are written. The same seed on both sides.
enum PageOrder {
  static func sequential(_ pages: Int) -> [UInt32] { (0..<UInt32(pages)).map { $0 } }

  /// Every page once.
  static func random(_ pages: Int) -> [UInt32] {
    var source = SplitMix64(state: 42)
    return sequential(pages).shuffled(using: &source)
  }

  /// Every page once: the lower half of the memory first, then the upper one, each at random.
  static func randomHalves(_ pages: Int) -> [UInt32] {
    var source = SplitMix64(state: 42)
    let all = sequential(pages)
    return all.prefix(pages / 2).shuffled(using: &source) + all.suffix(pages - pages / 2).shuffled(using: &source)
  }

  /// Every page once: runs of so many adjacent pages, the runs at random.
  static func randomRuns(_ pages: Int, of length: Int) -> [UInt32] {
    random(pages / length).flatMap { run in (0..<UInt32(length)).map { run * UInt32(length) + $0 } }
  }
}

/// A small seeded generator (Steele, Lea and Flood 2014).
private struct SplitMix64: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }
}
