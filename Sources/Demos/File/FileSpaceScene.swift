internal import PinKit
internal import Terminal

/// A file system without room (N3).
struct FileSpaceScene: DemoScene {
  let title = "no space left"
  let needs: [DemoNeed] = [.stores]

  struct Outcome: Sendable {
    /// Whether a real file system was full.
    var isReal = true
    var rows: [FileHeatMap.Row] = []
    /// A store that takes no space before pages are written: the flush's error, and what it left.
    var flushError: PinError.Code?
    var dirtyAfter = 0
    /// Pages whose bytes in memory are another round's than the last written.
    var lost = 0
    var nextError: PinError.Code?
    /// Of all pages that were written, those that the file lacks in the end.
    var missing = 0
    var written = 0
    /// A store that takes it: how many pages could be written, the error that the writer of the next one got, and the flush's.
    var granted = 0
    var writerError: PinError.Code?
    var isRefusedDirty = true
    var grantedFlushError: PinError.Code?
    var grantedMissing = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A sparse file of 2 MiB on a file system with a few hundred KiB left. A store that takes no space finds out when pages are written "
        + "back: nothing may be lost, and once there is room the next flush must get it all to the disk. A store that takes space before "
        + "pages become writable tells the writer at once.")
    let files = try LedgerFiles(name: "file")
    var found = DemoFindings()
    let disk: SmallFileSystem?
    do { disk = try SmallFileSystem(files) } catch let error as PinError where error.code == .unsupported {
      disk = nil
      stage.say(
        "A store of the demo's own says that there is no space, as no real file system can be filled here: \(error.advice)")
      found.skipped.append(.init(subject: "a real small file system", reason: error.advice))
    }
    let outcome = if let disk { try Self.perform(disk) } else { try Self.performAlone(files) }
    stage.draw(FileHeatMap(rows: outcome.rows).lines(stage), indent: 2)
    found.claims = Self.judge(outcome)
    stage.show(found.claims)
    return found
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "W5", claim: "a flush without room says so, and loses nothing",
        holds: outcome.flushError == .outOfSpace && outcome.dirtyAfter > 0 && outcome.lost == 0,
        evidence:
          "The flush said \(outcome.flushError.map { "\"\($0)\"" } ?? "nothing"); \(counted(outcome.dirtyAfter, "page")) stayed "
          + "dirty, and \(outcome.lost) of \(outcome.written) hold something else than what was written."),
      Claim(
        contract: "W5", claim: "with room again, the next flush writes everything",
        holds: outcome.nextError == nil && outcome.written > 0 && outcome.missing == 0,
        evidence: "It said \(outcome.nextError.map { "\"\($0)\"" } ?? "nothing"); the file lacks \(outcome.missing) of "
          + "\(outcome.written) pages."),
      Claim(
        contract: "N3", claim: "a store that takes space first tells the writer, and what it granted can be written back",
        holds: outcome.writerError == .outOfSpace && !outcome.isRefusedDirty && outcome.granted > 0
          && outcome.grantedFlushError == nil && outcome.grantedMissing == 0,
        evidence: "\(counted(outcome.granted, "page")) could be written; the writer of the next got "
          + "\(outcome.writerError.map { "\"\($0)\"" } ?? "no error"), and it stayed \(outcome.isRefusedDirty ? "dirty" : "clean"). The "
          + "flush said \(outcome.grantedFlushError.map { "\"\($0)\"" } ?? "nothing"); \(outcome.grantedMissing) pages are missing."
      ),
    ]
  }

  static let pages = 512

  static func perform(_ disk: SmallFileSystem) throws -> Outcome {
    var outcome = Outcome()
    let late = try FileStore(path: disk.path("late"), creating: pages * 4096, options: .init { $0.reservesSpace = false })
    let early = try FileStore(path: disk.path("early"), creating: pages * 4096)
    try late.flush()
    try early.flush()
    disk.occupy(leaving: 600 << 10)
    try fillLate(late, path: disk.path("late"), &outcome) { disk.makeRoom() }
    disk.occupy(leaving: 600 << 10)
    try fillEarly(early, path: disk.path("early"), &outcome)
    return outcome
  }

  /// The same where no file system can be filled: a store of the demo's own refuses.
  static func performAlone(_ files: LedgerFiles) throws -> Outcome {
    var outcome = Outcome(isReal: false)
    let full = PinError(.outOfSpace, operation: "write a page", advice: "The demo's store was told to be full.")
    let late = WatchedStore(try FileStore(path: files.path("late"), creating: pages * 4096))
    late.set { hooks in hooks.writing = { transfer throws(PinError) in if transfer.pages.upperBound > 100 { throw full } } }
    try fillLate(late, path: files.path("late"), &outcome) { late.set { $0 = WatchedStore.Hooks() } }
    let early = WatchedStore(try FileStore(path: files.path("early"), creating: pages * 4096))
    early.set { hooks in
      hooks.answersAtOnce = false
      hooks.granting = { pages throws(PinError) in if pages.lowerBound >= 100 { throw full } }
    }
    try fillEarly(early, path: files.path("early"), &outcome)
    return outcome
  }

  private static func fillLate(
    _ store: some PageStore, path: String, _ outcome: inout Outcome, makeRoom: () -> Void
  ) throws {
    let space = try DemoSpace.make(expectsFailures: true)
    let region = try space.map(.file(store), pages: pages)
    for page in 0..<pages { try FileContent.write(2, page, to: region) }
    outcome.written = pages
    outcome.rows.append(thinned("written", region))
    outcome.flushError = FileFailureScene.flush(region)
    outcome.rows.append(thinned("flushed, without room", region))
    outcome.dirtyAfter = try (0..<pages).count { try region.filePageState($0).isDirty }
    outcome.lost = try FileContent.rounds(of: region).count { $0 != 2 }
    makeRoom()
    outcome.nextError = FileFailureScene.flush(region)
    outcome.rows.append(thinned("flushed, with room", region))
    let file = try DemoFile(reading: path)
    outcome.missing = try FileContent.rounds(of: file, pages: pages).count { $0 != 2 }
    try space.close()
  }

  private static func fillEarly(_ store: some PageStore, path: String, _ outcome: inout Outcome) throws {
    let space = try DemoSpace.make(expectsFailures: true)
    let region = try space.map(.file(store), pages: pages)
    do throws(PinError) {
      while outcome.granted < pages {
        try FileContent.write(2, outcome.granted, to: region)
        outcome.granted += 1
      }
    } catch { outcome.writerError = error.code }
    outcome.isRefusedDirty = outcome.granted < pages ? try region.filePageState(outcome.granted).isDirty : true
    outcome.rows.append(thinned("written, space taken first", region))
    outcome.grantedFlushError = FileFailureScene.flush(region)
    let file = try DemoFile(reading: path)
    outcome.grantedMissing = try FileContent.rounds(of: file, pages: outcome.granted).count { $0 != 2 }
    try space.close()
  }

  /// Every eighth page.
  private static func thinned(_ moment: String, _ region: Region) -> FileHeatMap.Row {
    let cells = (try? FileHeatMap.Row(moment, region).cells) ?? []
    return FileHeatMap.Row(moment, stride(from: 0, to: cells.count, by: 8).map { cells[$0] })
  }
}
