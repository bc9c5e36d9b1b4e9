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
/// window doubles each time. Anyone else gets a window of one page. Several such streams are followed at once.
struct FaultAround: ~Copyable, Sendable {
  /// 0: one page always; bit 31: adaptive with the maximum below it; otherwise fixed. A fault that reads an older one comes before the harvest
  /// from which on somebody's sets are exact, and what it opens along is on record as that.
  private let mode = Atomic<UInt32>(0)
  private let streams = SequentialStreams()
  /// For statistics.
  private let lastWindow = Atomic<UInt32>(1)

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
    return adapt(page, maximum: Int(mode & ~(1 << 31)))
  }

  private func adapt(_ page: Int, maximum: Int) -> Int {
    let known = streams.find(expecting: page)
    let window = known.map { min(maximum, max(1, $0.window * 2)) } ?? 1
    streams.expect(page + window, in: known?.stream ?? streams.begin(), window: window)
    lastWindow.store(UInt32(window), ordering: .relaxed)
    return window
  }
}
