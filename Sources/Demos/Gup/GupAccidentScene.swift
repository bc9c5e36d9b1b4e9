internal import PinKit
internal import Terminal

/// The four steps, by a manager that does not know of pins and by PinKit (P3, P6).
struct GupAccidentScene: DemoScene {
  let title = "a device writes through a pin after the page was cleaned"
  // The manager without the rules asks for the kernel's own notes of writes.
  let needs: [DemoNeed] = [.stores, .fixedBuffers, .mechanism(.asynchronous, .pool)]

  struct Outcome: Sendable {
    var without: GupRun
    var with: GupRun
    /// Whether PinKit's tracker reported every page, after each step; and what its snapshot had of each page.
    var reported: [GupStep: Bool] = [:]
    var snapped: [GupBytes] = []
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A device gets a page for writing once, and writes twice; in between the page is written back and cleaned. Its second write takes "
        + "no fault, as it goes around the page table. On the left a manager that finds dirty pages by the faults of their first writes "
        + "(userfaultfd, PAGEMAP_SCAN), as good ones do; on the right PinKit. The device is an io_uring with a registered buffer, the "
        + "steps are the same code, and the file is read with another descriptor. The first of 16 pages:")
    let outcome = try Self.perform()
    stage.draw(GupTimeline(runs: [outcome.without, outcome.with]).lines(stage), indent: 2)
    stage.say(GupTimeline.legend)
    stage.show()
    for run in [outcome.without, outcome.with] {
      stage.show(
        "  the file, \(run.name): ".padded(to: 32) + GupBytes.dump(run.fileBytes) + "  \(GupBytes.text(run.fileBytes))")
    }
    stage.show()
    var found = DemoFindings(showing: Self.judge(outcome), on: stage)
    for run in [outcome.without, outcome.with] {
      found.measurements.append(
        .init(
          subject: run.name, name: "pages that the file lacks", value: Double(run.file.count { $0 != .second }),
          unit: "pages"))
    }
    return found
  }

  static func perform(pages: Int = 16) throws -> Outcome {
    let files = try LedgerFiles(name: "gup")
    let content = GupBytes.pages(pages, .old)
    let first = try DemoFile(files.path("without"), content)
    let without = try GupRun.perform(try GupIgnorant(first, pages: pages), on: first, pages: pages)
    let second = try DemoFile(files.path("with"), content)
    let managed = try GupManaged(second, pages: pages)
    let with = try GupRun.perform(managed, on: second, pages: pages)
    return Outcome(without: without, with: with, reported: managed.reported, snapped: managed.snapped)
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    let (without, with) = (outcome.without, outcome.with)
    return [
      Claim(
        contract: "P3", claim: "without the rules the device's second write is lost, so the steps prove something",
        holds: isAccident(without), evidence: ending(without)),
      Claim(
        contract: "P3", claim: "with them the file ends with every byte that the device wrote",
        holds: isAll(.second, with.file, with) && isAll(.second, with.memoryAfter, with) && isWhole(with),
        evidence: ending(with)),
      Claim(
        contract: "P3", claim: "a page pinned for writing is never taken for clean, and is dirty after it is unpinned",
        holds: isDirtyThroughout(with), evidence: states(with)),
      Claim(
        contract: "P6", claim: "a tracker reports the pages in every collection until after they are unpinned",
        holds: [.firstWrite, .written, .secondWrite, .unpinned].allSatisfy { outcome.reported[$0] == true }
          && outcome.reported[.laterWritten] == false,
        evidence: "Reported after: "
          + GupStep.allCases.filter { outcome.reported[$0] == true }.map { quoted($0.title.trimmed) }.joined(separator: ", ")
          + "."),
      Claim(
        contract: "P6", claim: "a snapshot from between the writes has the first",
        holds: isAll(.first, outcome.snapped, with),
        evidence:
          "\(outcome.snapped.count { $0 == .first }) of \(with.pages) pages of the snapshot hold the first write, read after "
          + "the second."),
    ]
  }

  /// The file keeps the first write, the memory has the second until it is dropped, and nobody knew.
  private static func isAccident(_ run: GupRun) -> Bool {
    isAll(.first, run.file, run) && isAll(.second, run.memoryBefore, run) && isAll(.first, run.memoryAfter, run)
      && run.row(.secondWrite)?.state.isDirty == false
  }

  private static func isAll(_ content: GupBytes, _ pages: [GupBytes], _ run: GupRun) -> Bool {
    run.pages > 0 && pages == [GupBytes](repeating: content, count: run.pages)
  }

  /// What was flushed first reached the file, too.
  private static func isWhole(_ run: GupRun) -> Bool { run.row(.written)?.file == .first }

  private static func isDirtyThroughout(_ run: GupRun) -> Bool {
    let pinned = [GupStep.firstWrite, .writing, .written, .secondWrite]
    return pinned.allSatisfy { run.row($0)?.state.isPinned == true && run.row($0)?.state.isDirty == true }
      && run.row(.unpinned)?.state == GupState(isDirty: true)
      && run.row(.laterWriting)?.state.isUnderWriteback == true && run.row(.laterWritten)?.state == GupState()
  }

  private static func states(_ run: GupRun) -> String {
    run.rows.map { "\($0.step.title.trimmed): \($0.state.description)" }.joined(separator: "; ") + "."
  }

  private static func ending(_ run: GupRun) -> String {
    let held = run.file.count { $0 == .second }
    return "In the end \(held) of \(run.pages) pages of the file hold the second write; the first page begins with "
      + "\(quoted(GupBytes.text(run.fileBytes))). The memory had it in \(run.memoryBefore.count { $0 == .second }) pages, and in "
      + "\(run.memoryAfter.count { $0 == .second }) once clean pages were dropped and read again."
  }
}

extension String {
  var trimmed: String { String(drop { $0 == " " }) }
}
