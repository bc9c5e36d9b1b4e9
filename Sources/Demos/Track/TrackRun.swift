internal import Dispatch
internal import Logging
internal import PinKit

/// What the rounds of a demo have in common.
struct TrackPlan: Sendable {
  var corpus: TrackCorpus
  var copies: Int
  var writers: Int
  var layout: TrackIndexLayout

  init(corpus: TrackCorpus, copies: Int, writers: Int, pageSize: Int) {
    self.corpus = corpus
    self.copies = copies
    self.writers = writers
    layout = TrackIndexLayout(corpus: corpus, copies: copies, writers: writers, pageSize: pageSize)
  }

  /// In words.
  var roundSize: Int { corpus.wordCount * copies }
}

/// A region with an index in it, round after round.
final class TrackRegion {
  let plan: TrackPlan
  let space: AddressSpace
  let region: Region
  let gate = TrackGate()
  let logs: [WriteLog]

  init(_ plan: TrackPlan) throws {
    self.plan = plan
    var configuration = AddressSpace.Configuration()
    configuration.logger.logLevel = .error
    configuration.failurePolicy = .failRegion
    space = try AddressSpace(configuration: configuration)
    // Small pages: what is written to a huge page would be told apart no finer than the page.
    region = try space.map(.anonymous(hugePages: .never), pages: plan.layout.pageCount)
    logs = (0..<plan.writers).map { _ in WriteLog(pageCount: plan.layout.pageCount) }
  }

  func round() -> TrackRound {
    TrackRound(
      region: region, corpus: plan.corpus, copies: plan.copies, layout: plan.layout, gate: gate, logs: logs)
  }

  func audit(_ round: TrackRound) throws -> TrackIndex.Audit {
    try unsafe region.withUnsafeMutableBytes { bytes in
      unsafe round.index.audit(UnsafeRawBufferPointer(bytes), plan.corpus, copies: plan.copies)
    }
  }

  /// What the writers logged since the last call. The gate must be closed.
  func takeLogs() -> (all: DirtySet, afterRacing: DirtySet) {
    logs.reduce((DirtySet(pageCount: region.pageCount), DirtySet(pageCount: region.pageCount))) { sum, log in
      let taken = log.take()
      return (sum.0.union(taken.all), sum.1.union(taken.afterRacing))
    }
  }

  func close() throws {
    try region.unmap()
    try space.close()
  }
}

/// Shuts the writers of a round out now and then, and knows how long they worked.
struct TrackPauses {
  private let round: TrackRound
  private let gate: TrackGate
  private var begun: UInt64 = 0
  private var shutOut: UInt64 = 0

  init(_ round: TrackRound, _ gate: TrackGate) {
    self.round = round
    self.gate = gate
  }

  /// Starts the round.
  mutating func begin() {
    begun = DispatchTime.now().uptimeNanoseconds
    round.start()
  }

  /// Runs `body` while all writers are shut out, or have ended.
  mutating func pause<Result>(_ body: () throws -> Result) rethrows -> Result {
    gate.close()
    let closed = DispatchTime.now().uptimeNanoseconds
    defer {
      // What comes after the last writer's end was no pause.
      let ended = round.wait(milliseconds: 0)
      if !ended { shutOut += DispatchTime.now().uptimeNanoseconds - closed }
      gate.open()
    }
    return try body()
  }

  /// In nanoseconds, from the start to the last writer's end, without the pauses. Call after the end.
  var workingTime: Double { Double(round.endTime - begun - shutOut) }
}
