internal import Glibc
internal import PinKit
internal import Synchronization

/// Lets writers in for one small batch at a time, and lets the checker shut all of them out.
///
/// The order is total: a writer that is let in after `close()` has begun sees the gate closed and steps back, and `close()` waits
/// for those who were let in before.
final class TrackGate: Sendable {
  /// Where in an interval a batch began.
  enum Phase: UInt8, AtomicRepresentable, Sendable {
    /// Before the racing collection returned.
    case first
    /// After it returned: the next collection must name what is written from now on.
    case afterRacing
  }

  private let isClosed = Atomic<Bool>(false)
  private let inside = Atomic<Int>(0)
  private let phase = Atomic<Phase>(.first)

  /// Waits while the gate is closed. Every call needs one ``leave()``.
  func enter() -> Phase {
    while true {
      inside.add(1, ordering: .sequentiallyConsistent)
      if !isClosed.load(ordering: .sequentiallyConsistent) { return phase.load(ordering: .acquiring) }
      inside.subtract(1, ordering: .sequentiallyConsistent)
      while isClosed.load(ordering: .acquiring) { usleep(50) }
    }
  }

  func leave() { inside.subtract(1, ordering: .sequentiallyConsistent) }

  /// The racing collection has returned.
  func beginSecondPhase() { phase.store(.afterRacing, ordering: .releasing) }

  /// Shuts the writers out and waits until the last batch is over.
  func close() {
    isClosed.store(true, ordering: .sequentiallyConsistent)
    while inside.load(ordering: .sequentiallyConsistent) != 0 { usleep(20) }
  }

  func open() {
    phase.store(.first, ordering: .relaxed)
    isClosed.store(false, ordering: .sequentiallyConsistent)
  }
}

/// The pages that one writer is about to write, in ordinary memory: noted before each store.
///
/// Two bitmaps, one for each phase of an interval.
@safe final class WriteLog: @unchecked Sendable {  // its writer touches it inside the gate, the checker while it is closed
  let pageCount: Int
  private let words: UnsafeMutablePointer<UInt64>
  private let wordsPerPhase: Int
  private var current: UnsafeMutablePointer<UInt64>

  init(pageCount: Int) {
    self.pageCount = pageCount
    wordsPerPhase = (pageCount + 63) / 64
    unsafe words = .allocate(capacity: 2 * wordsPerPhase)
    unsafe words.initialize(repeating: 0, count: 2 * wordsPerPhase)
    unsafe current = words
  }

  deinit { unsafe words.deallocate() }

  func begin(_ phase: TrackGate.Phase) { unsafe current = words + (phase == .first ? 0 : wordsPerPhase) }

  @inline(__always) func note(_ page: Int) {
    precondition(page >= 0 && page < pageCount)
    unsafe current[page >> 6] |= 1 << UInt64(page & 63)
  }

  func note(_ pages: Range<Int>) { for page in pages { note(page) } }

  /// What was noted since the last call, and of that, what was noted in the second phase.
  func take() -> (all: DirtySet, afterRacing: DirtySet) {
    var sets = [DirtySet(pageCount: pageCount), DirtySet(pageCount: pageCount)]
    for phase in 0..<2 {
      var runs: [Range<Int>] = []
      for index in 0..<wordsPerPhase {
        let at = phase * wordsPerPhase + index
        var bits = unsafe words[at]
        unsafe words[at] = 0
        while bits != 0 {
          let first = bits.trailingZeroBitCount
          let length = (~(bits >> UInt64(first))).trailingZeroBitCount
          let run = index * 64 + first..<index * 64 + min(64, first + length)
          runs.append(run)
          bits = first + length >= 64 ? 0 : bits & (~0 << UInt64(first + length))
        }
      }
      sets[phase] = DirtySet(pageCount: pageCount, runs: runs)
    }
    return (sets[0].union(sets[1]), sets[1])
  }
}
