internal import Synchronization

/// How many pages a write fault may open.
///
/// A page that is opened along with a faulting neighbour can be written without a fault: nobody knows whether it was. Such pages are
/// reported apart, in ``DirtySet/faultAroundRuns``.
public enum FaultAroundPolicy: Sendable, Hashable {
  /// The faulting page only: the dirty set holds exactly the pages that were written.
  case exact
  /// This many pages, from the faulting one on.
  case fixed(Int)
  /// One page for random writers, more and more, up to `maximum`, for those who go through memory in order.
  case adaptive(maximum: Int = 64)
}

/// How many pages one fault opens.
///
/// A writer that goes through memory in order is recognized by faulting right behind the pages that its last fault opened; its
/// window doubles each time. Anyone else gets a window of one page. Several such streams are followed at once. All state is advisory:
/// lost updates cost a smaller window, nothing else.
struct FaultAround: ~Copyable, Sendable {
  private static let streams = 8
  private static let windowBits: UInt64 = 16

  /// 0: one page always; bit 31: adaptive with the maximum below it; otherwise fixed.
  private let mode = Atomic<UInt32>(0)
  /// next page << 16 | window
  private let slots: InlineArray<8, AtomicSlot>
  private let turn = Atomic<UInt32>(0)
  private let lastWindow = Atomic<UInt32>(1)

  private struct AtomicSlot: ~Copyable { let value = Atomic<UInt64>(0) }

  init() { slots = InlineArray { _ in AtomicSlot() } }

  func set(_ policy: FaultAroundPolicy) {
    if case .fixed(let pages) = policy {
      lastWindow.store(UInt32(min(max(pages, 1), 32768)), ordering: .relaxed)
    } else {
      lastWindow.store(1, ordering: .relaxed)
    }
    switch policy {
    case .exact: mode.store(0, ordering: .relaxed)
    case .fixed(let pages): mode.store(UInt32(min(max(pages, 1), 32768)), ordering: .relaxed)
    case .adaptive(let maximum): mode.store(1 << 31 | UInt32(min(max(maximum, 1), 32768)), ordering: .relaxed)
    }
  }

  /// Whether pages may be opened that were not faulted on.
  var opensNeighbours: Bool { mode.load(ordering: .relaxed) > 1 }

  /// The window of the latest fault, in pages.
  var currentWindow: Int { Int(lastWindow.load(ordering: .relaxed)) }

  /// How many pages, from `page` on, this fault should open.
  @inline(__always) func window(at page: Int) -> Int {
    let mode = mode.load(ordering: .relaxed)
    if mode <= 1 { return 1 }
    if mode & 1 << 31 == 0 { return Int(mode) }
    return adapt(page, maximum: UInt64(mode & ~(1 << 31)))
  }

  private func adapt(_ page: Int, maximum: UInt64) -> Int {
    var window: UInt64 = 1
    var slot = -1
    for index in 0..<Self.streams {
      let value = slots[index].value.load(ordering: .relaxed)
      guard value >> Self.windowBits == UInt64(page) + 1 else { continue }
      window = min(maximum, max(1, (value & 0xffff) * 2))
      slot = index
      break
    }
    if slot < 0 { slot = Int(turn.add(1, ordering: .relaxed).oldValue) & (Self.streams - 1) }
    // Stored one too high, so that zero never matches.
    slots[slot].value.store((UInt64(page) + window + 1) << Self.windowBits | window, ordering: .relaxed)
    lastWindow.store(UInt32(window), ordering: .relaxed)
    return Int(window)
  }
}
