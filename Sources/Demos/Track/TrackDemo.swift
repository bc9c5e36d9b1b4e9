internal import Foundation
package import PinKit
internal import Terminal

/// Builds a word index inside tracked memory, by each mechanism in turn, and checks every dirty set.
package struct TrackDemo: Demo {
  package let name = "track"
  package let summary = "which pages a program writes, by four mechanisms, with every set checked"

  /// None means the licence texts.
  package var files: [String] = []
  package var mechanisms: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .asynchronous, .mprotect]
  /// For each mechanism.
  package var seconds = 2.5
  var writers = 4

  package init() {}

  package func run(on stage: DemoStage) throws -> DemoResult {
    let plan = try self.plan()
    stage.title("pinctl demo \(name): \(summary)")
    return try tell(plan, on: stage).conclude(name, on: stage)
  }

  /// Throws ``TrackCorpus/Problem`` if there is nothing to index.
  func plan() throws -> TrackPlan {
    let pageSize = sysconf(CInt(_SC_PAGESIZE))
    return try TrackBaseline.plan(
      TrackCorpus(paths: files), writers: writers, pageSize: pageSize, roundSeconds: seconds / 6)
  }

  /// All but its title and what it came to.
  func tell(_ plan: TrackPlan, on stage: DemoStage) throws -> DemoFindings {
    introduce(plan, stage)
    let baseline = try TrackBaseline.measure(plan, seconds: seconds / 5)
    stage.say("Untracked, a round of indexing takes \(milliseconds(baseline)).")

    var found = DemoFindings(
      measurements: [.init(subject: "untracked", name: "round", value: baseline / 1e6, unit: "ms")])
    for mechanism in mechanisms {
      stage.title(mechanism.rawValue)
      found.attempt(mechanism.rawValue, needing: [.memory, .mechanism(mechanism, .anonymous)], on: stage) {
        $0 += show(try TrackSession(plan, mechanism), plan, baseline: baseline, stage)
      }
    }
    return found
  }

  private func show(
    _ session: TrackSession, _ plan: TrackPlan, baseline: Double, _ stage: DemoStage
  ) -> DemoFindings {
    stage.say(session.mechanism.story)
    var claims: [Claim] = []
    do { try session.run(seconds: seconds) } catch { claims.append(failure(session.mechanism, error)) }
    claims = session.claims() + claims
    let picture = TrackHeatMap(stage: stage, layout: plan.layout)
    stage.show()
    let excerpt = picture.excerpt(session.frames)
    for line in picture.lines(excerpt) { stage.show(line) }
    stage.show(picture.legend)
    stage.show()
    explain(picture.typicalShares(session.frames), excerpt, stage)
    let measured = TrackMeasurements(session, baseline: baseline)
    for line in measured.lines { stage.show("  " + line) }
    stage.show()
    stage.show(claims, about: session.mechanism.rawValue)
    do { try session.close() } catch { claims.append(failure(session.mechanism, error)) }
    return DemoFindings(claims: claims, measurements: measured.all)
  }

  private func failure(_ mechanism: WriteTracking.Mechanism, _ error: any Error) -> Claim {
    Claim(contract: "K3", claim: "\(mechanism.rawValue): runs to the end", holds: false, evidence: "\(error)")
  }

  // MARK: The story

  private func introduce(_ plan: TrackPlan, _ stage: DemoStage) {
    let corpus = plan.corpus
    let texts = corpus.texts.count == 1 ? corpus.texts[0].name : "\(corpus.texts.count) texts"
    stage.say(
      "\(plan.writers) threads index \(texts) (\(corpus.wordCount.grouped) words, \(corpus.counts.count.grouped) different ones), "
        + "\(plan.copies) times over, inside \(plan.layout.pageCount.grouped) pages of tracked memory: hash buckets, the words, "
        + "and for each word the places where it stands. Then the memory is discarded, and they begin again.")
    stage.say(
      "Meanwhile another thread collects the dirty pages every few milliseconds: once while the threads write, and once more after "
        + "it has shut them out. Then it compares both sets with a log of every store, with a shadow copy, byte for byte, and with the kernel."
    )
  }

  private func explain(
    _ shares: [(name: String, share: Double)], _ frames: ArraySlice<TrackSession.Frame>, _ stage: DemoStage
  ) {
    let rounds = frames.filter(\.beginsRound).count
    let seconds = frames.isEmpty ? 0 : Double(frames.last!.time - frames.first!.time) / 1e9
    let parts = shares.map { "\(percent($0.share)) of the \($0.name)" }
    stage.say(
      "From left to right are \(seconds.rounded(to: 2)) seconds, the last \(rounds) rounds; each row is a stretch of pages, the brighter "
        + "the more of them were written. In a typical interval "
        + "\(parts[0]) were dirty (they change only when a word is new), \(parts[1]) (every occurrence counts one up) and "
        + "\(parts[2]) (written where the threads append, and seldom again: the slanting lines).")
  }

  private func percent(_ share: Double) -> String {
    share == 0 ? "none" : "\((share * 100).rounded(to: share < 0.1 ? 1 : 0)) %"
  }
}

extension WriteTracking.Mechanism {
  /// How it notices writes, in a sentence.
  fileprivate var story: String {
    switch self {
    case .automatic: "The cheapest mechanism that works here."
    case .handlerThread:
      "The first write to a protected page stops its thread; a reader thread gets the fault from a userfaultfd, notes the page, lifts its protection and lets the writer go on."
    case .inPlace:
      "The first write to a protected page raises SIGBUS in the writing thread itself, which notes the page, lifts its protection and goes on."
    case .asynchronous:
      "The kernel lets the first write to a protected page through and drops its mark; PAGEMAP_SCAN finds the pages without a mark and sets it again. No fault reaches the program."
    case .mprotect:
      "The memory is read-only to mprotect(2); the first write to a page raises SIGSEGV, and the handler notes the page and makes it writable. Works where userfaultfd is forbidden."
    }
  }
}
