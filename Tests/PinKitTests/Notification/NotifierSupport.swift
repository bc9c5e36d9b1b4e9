import Glibc
import Synchronization

@testable import PinKit

/// What a subscriber was called with, in order.
struct Call: Hashable, CustomStringConvertible {
  enum Kind: String { case start, middle, end, release }
  var kind: Kind
  var event: InvalidationRange.Event?
  var pages: Range<Int>
  var isBlockable = true
  var description: String { "\(kind)(\(event?.rawValue ?? "-") \(pages))" }

  static func start(_ event: InvalidationRange.Event, _ pages: Range<Int>, blockable: Bool = true) -> Call {
    Call(kind: .start, event: event, pages: pages, isBlockable: blockable)
  }
  static func middle(_ event: InvalidationRange.Event, _ pages: Range<Int>, blockable: Bool = true) -> Call {
    Call(kind: .middle, event: event, pages: pages, isBlockable: blockable)
  }
  static func end(_ event: InvalidationRange.Event, _ pages: Range<Int>, blockable: Bool = true) -> Call {
    Call(kind: .end, event: event, pages: pages, isBlockable: blockable)
  }
  static let release = Call(kind: .release, event: nil, pages: 0..<0, isBlockable: false)
}

/// A subscriber that writes down what it is told, and answers as it is asked to.
final class RecordingNotifier: MMUNotifier {
  typealias OnStart = @Sendable (InvalidationRange) throws -> InvalidationResponse
  private let list = Mutex<[Call]>([])
  private let onStart: OnStart
  private let onMiddle: @Sendable (InvalidationRange) -> Void
  private let onEnd: @Sendable (InvalidationRange) -> Void

  init(
    _ start: @escaping OnStart = { _ in .done }, middle: @escaping @Sendable (InvalidationRange) -> Void = { _ in },
    end: @escaping @Sendable (InvalidationRange) -> Void = { _ in }
  ) {
    onStart = start
    onMiddle = middle
    onEnd = end
  }

  private func add(_ kind: Call.Kind, _ range: InvalidationRange) {
    list.withLock { $0.append(Call(kind: kind, event: range.event, pages: range.pages, isBlockable: range.isBlockable)) }
  }

  func invalidateRangeStart(_ range: InvalidationRange) throws -> InvalidationResponse {
    add(.start, range)
    return try onStart(range)
  }
  func invalidateRange(_ range: InvalidationRange) {
    add(.middle, range)
    onMiddle(range)
  }
  func invalidateRangeEnd(_ range: InvalidationRange) {
    add(.end, range)
    onEnd(range)
  }
  func release() { list.withLock { $0.append(.release) } }

  var calls: [Call] { list.withLock { $0 } }
  /// What has come since the last time.
  func take() -> [Call] {
    list.withLock { list in
      defer { list = [] }
      return list
    }
  }
  func take(_ kinds: Call.Kind...) -> [Call] { take().filter { kinds.contains($0.kind) } }
}

/// A pool region with something in every page, and a clone that shares its frames.
func sharedPair(_ space: AddressSpace, pages: Int = 16, _ mechanism: WriteTracking.Mechanism) throws -> (Region, Region) {
  let region = try space.map(.pool, pages: pages)
  for page in 0..<pages { try region.store(UInt64(page + 1), toByteOffset: page * 4096) }
  return (region, try region.clone(mechanism: mechanism))
}
