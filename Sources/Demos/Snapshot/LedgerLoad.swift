internal import Dispatch
internal import Foundation
internal import Histogram
internal import PinKit
internal import Synchronization

/// Writers at work on a ledger in a region.
final class LedgerLoad: Sendable {
  let ledger: Ledger
  let region: Region
  let writers: [LedgerWriter]
  /// In nanoseconds, by ``LedgerClock``.
  let epoch = LedgerClock.now
  let phase = Atomic<LedgerPhase>(.between)
  let isStopping = Atomic<Bool>(false)
  private let group = DispatchGroup()

  /// Fills the region.
  init(_ ledger: Ledger, _ region: Region) throws {
    self.ledger = ledger
    self.region = region
    writers = (0..<ledger.writers).map { LedgerWriter($0, ledger) }
    try withMemory { $0.fill() }
  }

  func withMemory<Result>(_ body: (LedgerMemory) throws -> Result) throws -> Result {
    try unsafe region.withUnsafeMutableBytes { bytes in unsafe try body(LedgerMemory(bytes, ledger)) }
  }

  /// Starts the threads.
  func start() {
    isStopping.store(false, ordering: .sequentiallyConsistent)
    for writer in writers {
      group.enter()
      let thread = Thread { [self] in
        // The region stays mapped until all have ended.
        try? withMemory { writer.run($0, self) }
        group.leave()
      }
      thread.name = "writer \(writer.index)"
      thread.start()
    }
  }

  /// Stops them after the transfer they are at, and waits for it.
  func stop() {
    isStopping.store(true, ordering: .sequentiallyConsistent)
    group.wait()
  }

  var begun: [UInt64] { writers.map { $0.begun.load(ordering: .acquiring) } }
  var completed: [UInt64] { writers.map { $0.completed.load(ordering: .acquiring) } }

  /// How long transfers took in a phase, in nanoseconds. The threads must have stopped.
  func times(_ phase: LedgerPhase) -> Histogram<UInt64> {
    var all = writers[0].times[Int(phase.rawValue)]
    for writer in writers.dropFirst() { all.add(writer.times[Int(phase.rawValue)]) }
    return all
  }
}
