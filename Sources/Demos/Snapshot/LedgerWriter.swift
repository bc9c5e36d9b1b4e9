internal import Glibc
internal import Histogram
internal import Synchronization

/// What is going on beside the writers.
enum LedgerPhase: UInt8, AtomicRepresentable, CaseIterable, Sendable {
  /// Nothing that is measured.
  case between
  case undisturbed
  case full
  case increment
  case firstFork
  case secondFork
}

enum LedgerClock {
  /// In nanoseconds.
  @inline(__always) static var now: UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }
}

/// Makes one transfer after the other, and takes the time of each.
///
/// Now and then, before a transfer, it notes how far the other writers are: whatever shows that transfer must show theirs.
final class LedgerWriter: @unchecked Sendable {
  // What is no Atomic belongs to its thread while that runs, and to whoever has seen it end otherwise.
  static let noteStride: UInt64 = 64
  /// In milliseconds; what comes later counts to the last slice.
  private static let sliceCount = 300_000
  /// In nanoseconds: longer than a write takes, and too short for anything but a page that had to be copied first. What takes longer
  /// was held up by a pause, or by other threads.
  static let slow: Range<UInt64> = 1_000..<1_000_000

  let index: Int
  private let ledger: Ledger
  /// The number of the last transfer that was begun, before its first store.
  let begun = Atomic<UInt64>(0)
  /// The number of the last transfer whose stores are all done.
  let completed = Atomic<UInt64>(0)

  private(set) var times: [Histogram<UInt64>]
  /// How many transfers ended in each millisecond since the start.
  private(set) var counts = [UInt32](repeating: 0, count: sliceCount)
  /// In nanoseconds: how much of each was spent in writes that were ``slow``.
  private(set) var slowed = [UInt32](repeating: 0, count: sliceCount)
  /// For each other writer, what it had completed before the transfers whose numbers are multiples of the stride.
  private(set) var notes: [[UInt64]]

  init(_ index: Int, _ ledger: Ledger) {
    self.index = index
    self.ledger = ledger
    let empty = Histogram<UInt64>(highestTrackableValue: 1 << 40, numberOfSignificantValueDigits: .two)
    times = Array(repeating: empty, count: LedgerPhase.allCases.count)
    notes = Array(repeating: [], count: ledger.writers)
    for other in notes.indices { notes[other].reserveCapacity(1 << 21) }
  }

  /// Works until `load` stops.
  func run(_ memory: LedgerMemory, _ load: LedgerLoad) {
    var number = completed.load(ordering: .relaxed)
    var before = LedgerClock.now
    while !load.isStopping.load(ordering: .relaxed) {
      number += 1
      if number % Self.noteStride == 0 { note(load.writers) }
      begun.store(number, ordering: .releasing)
      memory.perform(ledger.transfer(number, of: index))
      completed.store(number, ordering: .releasing)
      let now = LedgerClock.now
      record(now - before, now - load.epoch, load.phase.load(ordering: .relaxed))
      before = now
    }
  }

  private func note(_ writers: [LedgerWriter]) {
    for writer in writers where writer !== self { notes[writer.index].append(writer.completed.load(ordering: .acquiring)) }
  }

  @inline(__always) private func record(_ time: UInt64, _ moment: UInt64, _ phase: LedgerPhase) {
    _ = times[Int(phase.rawValue)].record(time)
    let slice = min(Int(moment / 1_000_000), Self.sliceCount - 1)
    counts[slice] &+= 1
    if Self.slow.contains(time) { slowed[slice] &+= UInt32(time) }
  }
}
