internal import Glibc
internal import PinKit
internal import Synchronization
internal import Terminal

/// Pages that come in when they are touched.
struct FileFillScene: DemoScene {
  let title = "pages come in when they are touched"
  let needs: [DemoNeed] = [.stores]

  /// What one policy brought in.
  struct Outcome: Sendable {
    var policy: String
    /// What the touches should bring in.
    var expected: Set<Int>
    var row = FileHeatMap.Row("", [])
    /// What the kernel says is mapped.
    var mapped: Set<Int> = []
    var reads = 0
    /// Pages that hold something else than the file, of those that are there.
    var wrong = 0

    var present: Set<Int> { Set(row.cells.indices.filter { row.cells[$0] != .absent }) }
  }

  /// Reading in order: how many pages each fault brought in.
  struct Sequence: Sendable {
    var pages = 0
    var windows: [Int] = []
    var wrong = 0
  }

  static let touched = [5, 44]
  static let pages = 64

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A region over a file has no pages at first. Who touches one faults, and PinKit reads it from the store, with its neighbours "
        + "if it was told so: the work of one fault serves many pages. Pages 5 and 44 of 64 are touched.")
    let files = try LedgerFiles(name: "file")
    let outcomes = [
      try Self.touch(.exact, "exact", Set(Self.touched), files),
      try Self.touch(.block(8), "block of 8", Set(0..<8).union(40..<48), files),
      try Self.touch(.adaptive(), "adaptive", Set(0..<16).union(32..<48), files),
    ]
    let sequence = try Self.readInOrder(files)
    stage.draw(FileHeatMap(rows: outcomes.map(\.row)).lines(stage), indent: 2)
    stage.say(
      "Who reads \(sequence.pages) pages in order gets more and more at once: "
        + sequence.windows.map { "\($0)" }.joined(separator: ", ") + ".", indent: 2)
    stage.show()
    let claims = Self.judge(outcomes) + Self.judge(sequence)
    stage.show(claims)
    return DemoFindings(
      claims: claims,
      measurements: [
        .init(
          subject: "reading in order", name: "pages a fault",
          value: Double(sequence.pages) / Double(max(1, sequence.windows.count)), unit: "pages")
      ])
  }

  static func judge(_ outcomes: [Outcome]) -> [Claim] {
    let other = outcomes.first { $0.present != $0.expected }
    let unmapped = outcomes.first { $0.present != $0.mapped }
    let wrong = outcomes.reduce(0) { $0 + $1.wrong }
    return [
      Claim(
        contract: "K1", claim: "each policy brings in what it says, and the kernel has mapped just that",
        holds: !outcomes.isEmpty && other == nil && unmapped == nil,
        evidence: outcomes.map { "\($0.policy): \($0.present.count) pages in \(counted($0.reads, "read"))" }.joined(
          separator: "; ")
          + (other.map { ". Not so: \($0.policy)" } ?? "") + (unmapped.map { ". The kernel differs: \($0.policy)" } ?? "")
          + "."),
      Claim(
        contract: "W5", claim: "every page holds the file's bytes",
        holds: outcomes.contains { !$0.present.isEmpty } && wrong == 0,
        evidence: "\(wrong) of \(outcomes.reduce(0) { $0 + $1.present.count }) pages hold something else."),
    ]
  }

  static func judge(_ sequence: Sequence) -> [Claim] {
    let most = sequence.windows.max() ?? 0
    return [
      Claim(
        contract: "W5", claim: "reading in order takes few faults, and every page is read once",
        holds: sequence.wrong == 0 && sequence.windows.reduce(0, +) == sequence.pages
          && most >= 2 * (sequence.windows.first ?? most),
        evidence:
          "\(counted(sequence.windows.count, "read")) of up to \(most) pages brought in \(sequence.windows.reduce(0, +)) of "
          + "\(sequence.pages); \(sequence.wrong) hold something else than the file.")
    ]
  }

  private static func touch(
    _ policy: FillAround, _ name: String, _ expected: Set<Int>, _ files: LedgerFiles
  ) throws -> Outcome {
    var outcome = Outcome(policy: name, expected: expected)
    let reads = FileReads()
    try with(policy, pages, files, reads) { region in
      for page in touched { _ = try FileContent.touch(page, of: region) }
      // The program may have its bytes a moment before they are marked as there.
      for _ in 0..<1000 where try !touched.allSatisfy({ try region.filePageState($0).isPresent }) { usleep(1000) }
      outcome.row = try FileHeatMap.Row(name, region)
      outcome.reads = reads.list.count
      var mapped = Set<Int>()
      try PageMap().scan(region.addresses, .init(required: .present, returned: .present)) { run, _ in
        let start = Int(run.start - region.addresses.start) / 4096
        mapped.formUnion(start..<start + run.count / 4096)
      }
      outcome.mapped = mapped
      for page in outcome.present where try FileContent.touch(page, of: region) != FileContent.word(1, page) {
        outcome.wrong += 1
      }
    }
    return outcome
  }

  private static func readInOrder(_ files: LedgerFiles) throws -> Sequence {
    var found = Sequence(pages: 256)
    let reads = FileReads()
    try with(.adaptive(), found.pages, files, reads) { region in
      found.wrong = try (0..<found.pages).count { try FileContent.touch($0, of: region) != FileContent.word(1, $0) }
    }
    found.windows = reads.list.map(\.count)
    return found
  }

  private static func with(
    _ policy: FillAround, _ pages: Int, _ files: LedgerFiles, _ reads: FileReads, _ body: (Region) throws -> Void
  ) throws {
    let file = try DemoFile(files.path("filled"), FileContent.pages(1, pages))
    let store = WatchedStore(try FileStore(path: file.path))
    store.set { hooks in hooks.reading = { pages throws(PinError) in reads.note(pages) } }
    let space = try DemoSpace.make()
    try body(try space.map(.file(store, fillAround: policy), pages: pages))
    try space.close()
  }
}

/// What a store was asked to read.
final class FileReads: Sendable {
  private let all = Mutex<[Range<Int>]>([])
  func note(_ pages: Range<Int>) { all.withLock { $0.append(pages) } }
  var list: [Range<Int>] { all.withLock { $0 } }
}
