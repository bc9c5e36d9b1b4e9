internal import Foundation
internal import Logging
internal import PinKit
internal import Synchronization

/// The sizes of a run.
package struct SnapshotPlan: Sendable {
  /// In MiB.
  package var size: Int
  package var writers: Int
  /// How long the writers are watched alone, and how long they run between two checkpoints.
  package var seconds: Double
  /// Whether `fork()` does the same afterwards.
  var isBesideFork = true

  package init(size: Int = 256, writers: Int = 2, seconds: Double = 0.8) {
    self.size = size
    self.writers = writers
    self.seconds = seconds
  }
}

/// A ledger with writers on it, first beside PinKit's checkpoints, then beside those of `fork()`.
final class SnapshotSession {
  let ledger: Ledger
  let load: LedgerLoad
  let plan: SnapshotPlan
  private let space: AddressSpace
  private let region: Region
  private let files: LedgerFiles
  /// How long the writers were watched alone, in seconds.
  private(set) var quietTime = 0.0

  init(_ plan: SnapshotPlan, _ files: LedgerFiles) throws {
    self.plan = plan
    self.files = files
    let pageSize = sysconf(CInt(_SC_PAGESIZE))
    ledger = Ledger(pages: (plan.size << 20) / pageSize, pageSize: pageSize, writers: plan.writers)
    space = try Self.space()
    // Small pages: both methods copy them alike, and leave the memory to the other as it was.
    region = try space.map(.anonymous(hugePages: .never), pages: ledger.pageCount)
    load = try LedgerLoad(ledger, region)
  }

  static func space() throws -> AddressSpace {
    var configuration = AddressSpace.Configuration()
    configuration.logger.logLevel = .error
    configuration.failurePolicy = .failRegion
    // For the child that writes its copy.
    configuration.inheritsAcrossFork = true
    return try AddressSpace(configuration: configuration)
  }

  /// The first is full, the second holds what changed since.
  func runPinKit() throws -> (checkpoints: [Checkpoint], images: [SnapshotImage]) {
    let method = PinKitCheckpoints(region)
    load.start()
    defer { load.stop() }
    letWritersRun()
    let begin = LedgerClock.now
    load.phase.store(.undisturbed, ordering: .sequentiallyConsistent)
    Thread.sleep(forTimeInterval: plan.seconds)
    quietTime = Double(LedgerClock.now - begin) / 1e9
    load.phase.store(.between, ordering: .sequentiallyConsistent)
    let checkpoints = try take([(.full, "full.img"), (.increment, "increment.img")], method.begin)
    return (checkpoints, method.images)
  }

  /// Both are full: a child cannot tell what changed.
  func runFork() throws -> [Checkpoint] {
    try region.endSnapshots()
    // What the first method left to be done at a page's next write shall not be charged to the second.
    try load.withMemory { $0.touch() }
    let method = ForkCheckpoints(region)
    load.start()
    defer { load.stop() }
    letWritersRun()
    return try take([(.firstFork, "fork-1.img"), (.secondFork, "fork-2.img")], method.begin)
  }

  /// Lets the writers run for a while: on a busy machine until each of them has had its turn.
  private func letWritersRun() {
    let before = load.completed
    let patience = Date(timeIntervalSinceNow: 10)
    repeat {
      Thread.sleep(forTimeInterval: plan.seconds / 2)
    } while Date() < patience && zip(load.completed, before).contains { $0 < $1 + 100 }
  }

  private func take(
    _ checkpoints: [(phase: LedgerPhase, name: String)], _ begin: (String) throws -> CheckpointUnderWay
  ) throws -> [Checkpoint] {
    try checkpoints.map { phase, name in
      let checkpoint = try load.checkpoint(phase, to: files.path(name), begin)
      letWritersRun()
      return checkpoint
    }
  }

  func close() throws {
    try region.unmap()
    try space.close()
  }
}
