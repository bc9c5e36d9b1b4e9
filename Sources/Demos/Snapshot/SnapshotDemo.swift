internal import Foundation
internal import PinKit
internal import Terminal

/// Saves a table that is being written to a file, twice by PinKit and twice by `fork()`, and checks every byte.
package struct SnapshotDemo: Demo {
  package let name = "snapshot"
  package let summary = "a table saved while it is written, beside fork(), with every byte checked"
  private let plan: SnapshotPlan

  package init(plan: SnapshotPlan = SnapshotPlan()) { self.plan = plan }

  package func run(on stage: DemoStage) throws -> DemoResult {
    stage.title("pinctl demo \(name): \(summary)")
    return try tell(on: stage).conclude(name, on: stage)
  }

  /// All but its title and what it came to.
  func tell(on stage: DemoStage) throws -> DemoFindings {
    let files = try LedgerFiles()
    let session = try SnapshotSession(plan, files)
    introduce(session.ledger, stage)
    var story = DemoFindings()
    do { try tell(session, files, stage, &story) } catch {
      story.claims.append(
        Claim(contract: "K3", claim: "the demo runs to the end", holds: false, evidence: "\(error)"))
      stage.show(story.claims.suffix(1))
    }
    try session.close()
    return story
  }

  private func tell(
    _ session: SnapshotSession, _ files: LedgerFiles, _ stage: DemoStage, _ story: inout DemoFindings
  ) throws {
    let judge = try SnapshotJudge(session.load)
    let claims = SnapshotClaims(judge: judge, ledger: session.ledger, files: files)
    stage.title("PinKit")
    let (taken, images) = try session.runPinKit()
    try show(claims.aboutPinKit(taken, images) + [judge.claimAboutMemory("PinKit")], "PinKit", stage, &story)

    var forked: [Checkpoint] = []
    if plan.isBesideFork {
      stage.title("fork()")
      do {
        forked = try session.runFork()
        try show(claims.aboutFork(forked), "fork()", stage, &story)
      } catch let refusal as LedgerFailure where refusal.isRefusedFork {
        stage.say("Skipped, as this machine cannot do it: \(refusal)")
        story.skipped.append(.init(subject: "fork()", reason: refusal.description))
      }
      try show([judge.claimAboutMemory("at the end")], "", stage, &story)
    }

    stage.title(plan.isBesideFork ? "side by side" : "what the writers noticed")
    let panels =
      [SnapshotTimeline.Panel(title: "PinKit: full image, increment", checkpoints: taken)]
      + (forked.isEmpty ? [] : [.init(title: "fork(): the whole table, twice", checkpoints: forked)])
    let timeline = SnapshotTimeline(session.load, panels, width: stage.width)
    for line in timeline.lines { stage.show(line) }
    stage.say(timeline.legend)
    stage.show()
    let measured = SnapshotMeasurements(session.load, taken + forked, quiet: session.quietTime)
    for line in measured.lines { stage.show(line) }
    stage.say(legend)
    story.measurements = measured.all
  }

  private func show(_ claims: [Claim], _ subject: String, _ stage: DemoStage, _ story: inout DemoFindings) throws {
    stage.show(claims, about: subject)
    story.claims += claims
  }

  private func introduce(_ ledger: Ledger, _ stage: DemoStage) {
    stage.say(
      "\(ledger.writers) threads book transfers between \(ledger.recordCount.grouped) accounts in \(ledger.size >> 20) MiB of memory "
        + "(4 KiB pages, \(ledger.busyPageCount.grouped) of \(ledger.pageCount.grouped) in use), as fast as they can. Meanwhile the table is saved "
        + "to files: by PinKit, a full image and then what changed since"
        + (plan.isBesideFork
          ? "; and after that, on the same memory, by a child of fork() that writes its copy, twice." : "."))
    stage.say(
      "Which transfer has which number is known without looking at the table. So each copy can be judged: the newest transfers in it "
        + "say of which moment it must be, and replaying the transfers up to there in other memory must give every byte of it, also "
        + "of the transfer that was half done at that moment.")
  }

  private var legend: String {
    let methods = plan.isBesideFork ? "each method" : "the snapshot"
    let child = plan.isBesideFork ? "; of fork(), what the child has for itself, page tables included" : ""
    return "Times of a write are the writers' own, while the file was being made; undisturbed, before any. Slowed: their "
      + "time in writes of 1 µs to 1 ms. The pause is what \(methods) says that it stopped the writers for. Memory, at "
      + "most: of PinKit, by how much the process grew, buffers included\(child). These are figures of this run, and no claims."
  }
}
