internal import Synchronization

/// Some who go through memory in order, told apart by where each is expected next.
///
/// All state is advisory: lost updates cost a smaller window, nothing else.
struct SequentialStreams: ~Copyable, Sendable {
  private static let count = 8

  /// (where the next fault is expected + 1) << 16 | the window that led there, in pages; 0 where there is none.
  private let slots: InlineArray<8, Slot>
  private let turn = Atomic<UInt32>(0)

  private struct Slot: ~Copyable { let value = Atomic<UInt64>(0) }

  init() { slots = InlineArray { _ in Slot() } }

  /// The stream that is expected at `page`, and the window that led there.
  func find(expecting page: Int) -> (stream: Int, window: Int)? {
    for stream in 0..<Self.count {
      let value = slots[stream].value.load(ordering: .relaxed)
      if value >> 16 == UInt64(page) + 1 { return (stream, Int(value & 0xffff)) }
    }
    return nil
  }

  /// A stream for who begins, in the place of the one that began first.
  func begin() -> Int { Int(turn.add(1, ordering: .relaxed).oldValue) & (Self.count - 1) }

  /// - Parameter window: Below 65536.
  func expect(_ page: Int, in stream: Int, window: Int) {
    slots[stream].value.store((UInt64(page) + 1) << 16 | UInt64(window), ordering: .relaxed)
  }
}
