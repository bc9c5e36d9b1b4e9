internal import Synchronization

/// Which snapshot it is: 128 random bits, so that images of different programs and machines can be told apart.
public struct SnapshotIdentity: Sendable, Hashable, Codable, CustomStringConvertible {
  public let high: UInt64
  public let low: UInt64

  public init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  static func random() -> SnapshotIdentity {
    var random = SystemRandomNumberGenerator()
    return SnapshotIdentity(high: random.next(), low: random.next())
  }

  /// 32 hexadecimal digits.
  public var description: String {
    [high, low].map { word in
      let digits = String(word, radix: 16)
      return String(repeating: "0", count: 16 - digits.count) + digits
    }.joined()
  }
}

/// A moment in the history of a region. Each knows the next one, so it lives as long as somebody may ask what changed since it.
final class SnapshotGeneration: Sendable {
  let identity = SnapshotIdentity.random()
  let parent: SnapshotIdentity?
  /// What was written since the generation before.
  let changes: DirtySet
  private let following = Mutex<SnapshotGeneration?>(nil)

  init(parent: SnapshotIdentity?, changes: DirtySet) {
    self.parent = parent
    self.changes = changes
  }

  deinit {
    // One after the other: a long history would otherwise be let go of recursively.
    var next = following.withLock { $0.take() }
    while isKnownUniquelyReferenced(&next) { next = next?.following.withLock { $0.take() } }
  }

  var next: SnapshotGeneration? { following.withLock { $0 } }
  func setNext(_ generation: SnapshotGeneration) { following.withLock { $0 = generation } }
}
