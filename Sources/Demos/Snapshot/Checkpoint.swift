internal import CFloor
internal import Dispatch
internal import Foundation
internal import Synchronization

/// How a copy of the ledger in a file came to be, with the writers at work.
struct Checkpoint: Sendable {
  var phase: LedgerPhase
  var path: String
  /// When it was asked for, when the writers could go on, and when the file was complete and on the disk; by ``LedgerClock``.
  var called: UInt64
  var taken: UInt64
  var complete: UInt64
  /// In nanoseconds: as the method itself has it.
  var pause: UInt64
  /// Of each writer, what was complete before the call, and what had been begun when it had returned.
  var completedBefore: [UInt64]
  var begunAfter: [UInt64]
  /// In bytes, at most.
  var extraMemory: Int
  /// Of that, copies of pages; `nil` if nobody counts them.
  var copies: Int?
  /// What the file takes, in bytes.
  var fileSize: Int

  /// In nanoseconds.
  var duration: UInt64 { complete - called }
}

/// A checkpoint that was taken, whose file is not complete yet.
struct CheckpointUnderWay {
  var pause: UInt64
  /// In bytes; gets what the process occupied before.
  var extraMemory: @Sendable (Int) -> Int
  /// In bytes.
  var copies: (@Sendable () -> Int)?
  /// Blocks until the file is on the disk.
  var finish: () throws -> Void
}

extension LedgerLoad {
  /// Has a checkpoint taken by `begin`, and takes down what it does to memory and writers.
  func checkpoint(
    _ phase: LedgerPhase, to path: String, _ begin: (String) throws -> CheckpointUnderWay
  ) throws -> Checkpoint {
    let before = Footprint.own
    let completedBefore = completed
    self.phase.store(phase, ordering: .sequentiallyConsistent)
    defer { self.phase.store(.between, ordering: .sequentiallyConsistent) }
    let called = LedgerClock.now
    let underWay = try begin(path)
    let taken = LedgerClock.now
    let begunAfter = begun
    let extraMemory = underWay.extraMemory
    let memory = Sampler(every: 20_000) { extraMemory(before) }
    let copies = underWay.copies.map { Sampler(every: 1_000, $0) }
    defer { _ = (memory.stop(), copies?.stop()) }
    try underWay.finish()
    return Checkpoint(
      phase: phase, path: path, called: called, taken: taken, complete: LedgerClock.now, pause: underWay.pause,
      completedBefore: completedBefore, begunAfter: begunAfter, extraMemory: memory.stop(), copies: copies?.stop(),
      fileSize: LedgerFiles.allocatedBytes(path))
  }
}

/// Looks at a number again and again, and keeps the largest.
private final class Sampler: Sendable {
  private let largest = Atomic<Int>(0)
  private let isStopping = Atomic<Bool>(false)
  private let ended = DispatchSemaphore(value: 0)

  /// - Parameter interval: In microseconds.
  init(every interval: UInt32, _ sample: @escaping @Sendable () -> Int) {
    let thread = Thread { [self] in
      repeat {
        largest.max(sample(), ordering: .relaxed)
        usleep(interval)
      } while !isStopping.load(ordering: .acquiring)
      ended.signal()
    }
    thread.name = "sampler"
    thread.start()
  }

  /// The largest. Waits for the thread's end; a second call does not.
  func stop() -> Int {
    if !isStopping.exchange(true, ordering: .acquiringAndReleasing) { ended.wait() }
    return largest.load(ordering: .relaxed)
  }
}

enum Footprint {
  /// What this process occupies, with its page tables, in bytes: from the kernel's running counts, which is cheap however much it is.
  static var own: Int {
    let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
    return status.split(separator: "\n").reduce(0) { sum, line in
      guard line.hasPrefix("VmRSS:") || line.hasPrefix("VmPTE:") else { return sum }
      return sum + (Int(line.filter(\.isNumber)) ?? 0) << 10
    }
  }

  /// What a forked child has for itself alone, in bytes; 0 once it has ended. That walks its page table.
  static func unshared(by child: Int32) -> Int {
    var found = cfloor_footprint()
    return unsafe cfloor_footprint_of(child, &found) == 0 ? Int(found.unshared + found.page_tables) : 0
  }
}
