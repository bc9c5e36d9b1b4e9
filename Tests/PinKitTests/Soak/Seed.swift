import Glibc

/// Where the random decisions of tests that race start. Each run draws another start and prints it; `PINKIT_SEED` repeats its decisions (not
/// the order in which threads come).
enum Seed {
  static let base: UInt64 = {
    if let text = unsafe getenv(variable), let number = UInt64(unsafe String(cString: text)) { return number }
    let drawn = UInt64.random(in: 1..<1 << 32)
    // Processes that a test starts take the same decisions.
    unsafe setenv(variable, "\(drawn)", 1)
    print("Random decisions start at \(drawn): \(variable)=\(drawn) repeats them.")
    return drawn
  }()

  private static let variable = "PINKIT_SEED"

  /// A start of its own for each thread, case and round.
  static func of(_ number: Int) -> UInt64 { base &+ UInt64(bitPattern: Int64(number)) &* 0xD1B5_4A32_D192_ED03 }
}

/// What the environment asks for.
func environmentNumber(_ name: String) -> Int? {
  guard let text = unsafe getenv(name) else { return nil }
  return Int(unsafe String(cString: text))
}
func environmentNumber(_ name: String, or standard: Int) -> Int { environmentNumber(name) ?? standard }
