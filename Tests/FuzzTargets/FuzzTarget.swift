/// What reads bytes from outside, as a function of bytes. Each input ends in a value or in a typed error; a trap ends the process, and whatever
/// else is wrong is returned. `make fuzz` drives them by coverage, and the suite replays what that found, and changes of it.
public enum FuzzTarget: String, CaseIterable, Sendable {
  /// A chain of images: headers and the files beside them.
  case image
  /// The rings and descriptors of a queue, as a driver leaves them.
  case queue
  /// What a store says of itself and does with its pages.
  case store

  /// - Returns: What is wrong, if anything is.
  public func run(_ input: [UInt8]) throws -> String? {
    switch self {
    case .image: try ImageTarget.run(input)
    case .queue: try QueueTarget.run(input)
    case .store: try StoreTarget.run(input)
    }
  }

  /// Inputs to start from, each of another kind.
  public func seeds() throws -> [[UInt8]] {
    switch self {
    case .image: try ImageTarget.seeds()
    case .queue: QueueTarget.seeds()
    case .store: StoreTarget.seeds()
    }
  }
}

/// Takes an input apart; zeros where it has ended.
struct InputReader {
  private let bytes: [UInt8]
  private(set) var offset = 0
  init(_ bytes: [UInt8]) { self.bytes = bytes }

  mutating func byte() -> UInt8 {
    defer { offset += 1 }
    return offset < bytes.count ? bytes[offset] : 0
  }
  mutating func number<Number: FixedWidthInteger>(_: Number.Type) -> Number {
    var value = Number.zero
    for shift in stride(from: 0, to: Number.bitWidth, by: 8) {
      value |= Number(truncatingIfNeeded: UInt64(byte()) << UInt64(shift))
    }
    return value
  }
  var isAtEnd: Bool { offset >= bytes.count }
}
