internal import PinKit
internal import Terminal

/// Pages that are dropped while a secondary MMU uses some (N12, N13).
struct FileReclaimScene: DemoScene {
  let title = "clean pages are dropped, those in use are not"
  let needs: [DemoNeed] = [.stores]

  struct Outcome: Sendable {
    var rows: [FileHeatMap.Row] = []
    /// Pages that a secondary MMU reads all the time, and one that is dirty.
    var hot: Set<Int>
    var dirty: Int
    /// What was there after the first drop, and after one without anybody using anything.
    var afterFirst: Set<Int> = []
    var afterSecond: Set<Int> = []
    var dropped: [Int] = []
    /// Pages that held something else than they should, read through the mirror and by the program, once they were back.
    var wrong = 0
    var checked = 0
    /// Pins at the moment of the first drop: a mirror takes none.
    var pins = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A device emulator reads two pages through translations of its own; the program's page table knows nothing of that. A page is "
        + "written, and memory is short: reclaim() drops what the file has. The emulator pins nothing, is asked what it used, and told "
        + "before anything goes.")
    let outcome = try Self.perform()
    stage.draw(FileHeatMap(rows: outcome.rows).lines(stage), indent: 2)
    let claims = Self.judge(outcome)
    stage.show(claims)
    return DemoFindings(
      claims: claims,
      measurements: [
        .init(subject: "reclaim", name: "pages dropped at first", value: Double(outcome.dropped.first ?? 0), unit: "pages")
      ])
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    let kept = outcome.hot.union([outcome.dirty])
    return [
      Claim(
        contract: "N13", claim: "a page that is hot only in a secondary MMU is not dropped as cold, and all others are",
        holds: !outcome.hot.isEmpty && outcome.afterFirst == kept,
        evidence: "The mirror used pages \(text(outcome.hot)), and page \(outcome.dirty) was dirty; left were pages "
          + "\(text(outcome.afterFirst))."),
      Claim(
        contract: "N12", claim: "the mirror keeps nothing for good: what it does not use any more goes",
        holds: outcome.pins == 0 && outcome.afterSecond == [outcome.dirty],
        evidence:
          "It had \(counted(outcome.pins, "pin")); after the second drop pages \(text(outcome.afterSecond)) were left."),
      Claim(
        contract: "N12", claim: "who comes back gets the file's bytes, through the mirror and without",
        holds: outcome.checked > 0 && outcome.wrong == 0,
        evidence: "\(outcome.wrong) of \(outcome.checked) pages held something else."),
    ]
  }

  private static func text(_ pages: Set<Int>) -> String {
    pages.isEmpty ? "none" : pages.sorted().map { "\($0)" }.joined(separator: ", ")
  }

  static func perform(pages: Int = 64) throws -> Outcome {
    var outcome = Outcome(hot: [11, 46], dirty: 30)
    let files = try LedgerFiles(name: "file")
    let file = try DemoFile(files.path("reclaimed"), FileContent.pages(1, pages))
    let space = try DemoSpace.make()
    let region = try space.map(.file(try FileStore(path: file.path), fillAround: .exact), pages: pages)
    let mirror = try SecondaryMMU(region)
    func word(_ page: Int) throws -> UInt64 {
      unsafe try mirror.withBytes(of: page, for: .reading) { unsafe $0.load(as: UInt64.self) }
    }
    func present() throws -> Set<Int> { Set(try (0..<pages).filter { try region.filePageState($0).isPresent }) }

    _ = try FileContent.rounds(of: region)
    try FileContent.write(2, outcome.dirty, to: region)
    for page in outcome.hot { _ = try word(page) }
    outcome.rows.append(try FileHeatMap.Row("all are there", region))
    outcome.pins = try (0..<pages).reduce(0) { try $0 + region.frameState($1).counts.pins }
    outcome.dropped.append(try region.reclaim(0..<pages))
    outcome.afterFirst = try present()
    outcome.rows.append(try FileHeatMap.Row("dropped, the mirror reads on", region))
    // Nobody has used anything since it was asked.
    outcome.dropped.append(try region.reclaim(0..<pages))
    outcome.afterSecond = try present()
    outcome.rows.append(try FileHeatMap.Row("dropped, nobody uses any", region))
    for page in 0..<pages {
      let expected = FileContent.word(page == outcome.dirty ? 2 : 1, page)
      outcome.wrong += try word(page) == expected ? 0 : 1
      outcome.wrong += try region.load(fromByteOffset: page * 4096, as: UInt64.self) == expected ? 0 : 1
      outcome.checked += 2
    }
    outcome.rows.append(try FileHeatMap.Row("used again", region))
    mirror.close()
    try space.close()
    return outcome
  }
}
