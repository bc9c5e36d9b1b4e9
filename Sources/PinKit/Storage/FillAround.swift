/// How many pages a fault on a page that is not there brings in.
public enum FillAround: Sendable, Hashable {
  /// That page only.
  case exact
  /// The aligned block of so many pages that it is in, a power of two up to 128.
  case block(Int)
  /// A block of 16 pages for who reads here and there, more and more from the page on, up to `maximum` (at most 128), for those who go
  /// through the file in order.
  case adaptive(maximum: Int = 64)
}

/// The windows of those who go through a file in order: recognized by faulting right behind the pages that their last fault brought in.
struct FillWindows: ~Copyable, Sendable {
  static let maximum = FaultReader.supplySize / 4096
  private let policy: FillAround
  private let streams = SequentialStreams()

  init(_ policy: FillAround) { self.policy = policy }

  /// The pages to bring in for a fault on `page`, and the stream it belongs to.
  func window(at page: Int) -> (pages: Range<Int>, stream: Int, size: Int) {
    switch policy {
    case .exact: return (page..<page + 1, -1, 1)
    case .block(let count): return (block(page, count), -1, count)
    case .adaptive(let maximum):
      guard let (stream, window) = streams.find(expecting: page) else {
        return (block(page, min(16, maximum)), streams.begin(), min(16, maximum))
      }
      let size = min(maximum, Self.maximum, window * 2)
      return (page..<page + size, stream, size)
    }
  }

  private func block(_ page: Int, _ count: Int) -> Range<Int> { page & ~(count - 1)..<page & ~(count - 1) + count }

  /// Notes that the stream's pages were brought in up to `end`.
  func note(_ stream: Int, end: Int, size: Int) {
    if stream >= 0 { streams.expect(end, in: stream, window: size) }
  }

  /// Whether the policy makes sense.
  static func check(_ policy: FillAround) -> Bool {
    switch policy {
    case .exact: true
    case .block(let count): count >= 1 && count <= maximum && count & (count - 1) == 0
    case .adaptive(let maximum): maximum >= 1 && maximum <= Self.maximum
    }
  }
}
