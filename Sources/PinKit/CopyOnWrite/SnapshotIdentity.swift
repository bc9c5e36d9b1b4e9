internal import Synchronization

/// What tells one snapshot, and an image of it, from every other on any machine: 128 random bits, written as 32 hexadecimal
/// digits.
public struct SnapshotIdentity: Sendable, Hashable, CustomStringConvertible {
  let high: UInt64
  let low: UInt64

  /// A new one, from the system's random numbers.
  public init() {
    high = .random(in: .min ... .max)
    low = .random(in: .min ... .max)
  }

  /// Reads a ``description``; `nil` if it is not 32 lowercase hexadecimal digits.
  public init?(_ description: String) {
    guard let (high, low) = Hexadecimal.read(description) else { return nil }
    (self.high, self.low) = (high, low)
  }

  public var description: String { Hexadecimal.text(high, low) }
}

/// A moment in the history of a region. Each knows the next one, so it lives as long as somebody may ask what changed since it.
final class SnapshotGeneration: Sendable {
  let identity = SnapshotIdentity()
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
