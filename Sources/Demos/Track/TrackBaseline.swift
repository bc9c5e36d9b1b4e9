internal import Dispatch
internal import PinKit

/// How long indexing takes when nobody tracks it: the same rounds, threads, gate and logs, with the same pauses for a comparison
/// of the bytes.
enum TrackBaseline {
  /// Nanoseconds a round, the median of as many as fit into `seconds`, one at least, after one that warms up.
  static func measure(_ plan: TrackPlan, seconds: Double) throws -> Double {
    let place = try TrackRegion(plan)
    let shadow = TrackShadow(of: place.region)
    var times: [Double] = []
    let deadline = DispatchTime.now() + seconds
    repeat {
      let round = place.round()
      var pauses = TrackPauses(round, place.gate)
      pauses.begin()
      while !round.wait(milliseconds: 4) { _ = try pauses.pause { try shadow.differing() } }
      if let failure = round.failure { throw failure }
      times.append(pauses.workingTime)
    } while times.count < 2 || DispatchTime.now() < deadline
    try place.close()
    return median(Array(times.dropFirst()))
  }

  /// A plan whose rounds last about `seconds` untracked, and stay small enough to be compared byte for byte many times a second.
  static func plan(_ corpus: TrackCorpus, writers: Int, pageSize: Int, roundSeconds: Double) throws -> TrackPlan {
    let copies = max(1, 20_000 / corpus.wordCount)
    let trial = TrackPlan(corpus: corpus, copies: copies, writers: writers, pageSize: pageSize)
    let rate = Double(trial.roundSize) / (try measure(trial, seconds: 0.1) / 1e9)
    let words = min(rate * roundSeconds, 800_000)
    return TrackPlan(
      corpus: corpus, copies: max(1, Int(words) / corpus.wordCount), writers: writers, pageSize: pageSize)
  }
}
