internal import Foundation
internal import PinKit
internal import Synchronization
internal import Terminal

/// A store that is slow, and one that fails (K2, W5).
struct FileFailureScene: DemoScene {
  let title = "a store that is slow, and one that fails"
  let needs: [DemoNeed] = [.stores]

  struct Slow: Sendable {
    /// Threads that waited inside the store, and pages that were brought in meanwhile with their bytes.
    var stuck = 0
    var served = 0
    var expected = 0
    /// Of the threads that waited, those that got their page's bytes in the end.
    var released = 0
    var milliseconds = 0.0
  }

  struct Failing: Sendable {
    var rows: [FileHeatMap.Row] = []
    /// What two flushes in a row said while the device was broken.
    var errors: [PinError.Code?] = []
    /// Which round the broken page was of, in memory and in the file, before and after the device was well again.
    var memory: Int?
    var fileBefore: Int?
    var fileAfter: Int?
    var isDirty = false
    /// The last flush's error, and the pages of the file that have another round than they should.
    var lastError: PinError.Code?
    var wrong = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "Eight threads touch pages that the store does not give away; all others must not notice. Then a device that refuses one page: "
        + "flush() must say so, every time, and keep the page.")
    let slow = try Self.performSlow()
    let failing = try Self.performFailing()
    stage.draw(FileHeatMap(rows: failing.rows).lines(stage), indent: 2)
    let claims = Self.judge(slow) + Self.judge(failing)
    stage.show(claims)
    return DemoFindings(
      claims: claims,
      measurements: [
        .init(subject: "beside a slow store", name: "other pages brought in", value: slow.milliseconds, unit: "ms")
      ])
  }

  static func judge(_ slow: Slow) -> [Claim] {
    [
      Claim(
        contract: "K2", claim: "a store that keeps its callers waiting does not stop faults on other pages",
        holds: slow.stuck == threads && slow.expected > 0 && slow.served == slow.expected && slow.released == threads,
        evidence: "While \(slow.stuck) threads waited, \(slow.served) of \(slow.expected) other pages came in, in "
          + "\(slow.milliseconds.rounded(to: 1)) ms; then \(slow.released) of the threads got the bytes of their page.")
    ]
  }

  static func judge(_ failing: Failing) -> [Claim] {
    [
      Claim(
        contract: "W5", claim: "a flush that failed says so each time, and keeps the page dirty and in memory",
        holds: failing.errors == [.inputOutput, .inputOutput] && failing.isDirty && failing.memory == 2
          && failing.fileBefore == 1,
        evidence:
          "The flushes said \(failing.errors.map { $0.map { "\"\($0)\"" } ?? "nothing" }.joined(separator: " and ")). The page "
          + "was \(failing.isDirty ? "dirty" : "clean"), of round \(text(failing.memory)) in memory and \(text(failing.fileBefore)) in "
          + "the file."),
      Claim(
        contract: "W5", claim: "the next flush writes what the failed ones could not",
        holds: failing.lastError == nil && failing.fileAfter == 2 && failing.wrong == 0,
        evidence: "The file has round \(text(failing.fileAfter)) of the page; \(failing.wrong) other pages are wrong."),
    ]
  }

  static func text(_ round: Int?) -> String { round.map { "\($0)" } ?? "none" }
  static let threads = 8

  static func performSlow(pages: Int = 64) throws -> Slow {
    let files = try LedgerFiles(name: "file")
    let file = try DemoFile(files.path("slow"), FileContent.pages(1, pages))
    let store = WatchedStore(try FileStore(path: file.path))
    let gate = FileGate()
    store.set { hooks in
      hooks.answersAtOnce = false
      hooks.reading = { pages throws(PinError) in if pages.lowerBound < Self.threads { gate.wait() } }
    }
    let space = try DemoSpace.make()
    let region = try space.map(.file(store, fillAround: .exact), pages: pages)
    let released = Atomic(0)
    let group = FileThreads(Self.threads) { page in
      let word = try? region.load(fromByteOffset: page * 4096, as: UInt64.self)
      if word == FileContent.word(1, page) { released.add(1, ordering: .sequentiallyConsistent) }
    }
    var slow = Slow(stuck: gate.waiters(atLeast: Self.threads), expected: pages - Self.threads)
    let begun = Date()
    for page in Self.threads..<pages
    where try region.load(fromByteOffset: page * 4096, as: UInt64.self) == FileContent.word(1, page) {
      slow.served += 1
    }
    slow.milliseconds = -begun.timeIntervalSinceNow * 1000
    slow.stuck = min(slow.stuck, gate.waiters(atLeast: 0))
    gate.open()
    group.join()
    slow.released = released.load(ordering: .sequentiallyConsistent)
    try space.close()
    return slow
  }

  static func performFailing(pages: Int = 64, broken: Int = 19) throws -> Failing {
    let files = try LedgerFiles(name: "file")
    let file = try DemoFile(files.path("failing"), FileContent.pages(1, pages))
    let store = WatchedStore(try FileStore(path: file.path))
    let space = try DemoSpace.make(expectsFailures: true)
    let region = try space.map(.file(store), pages: pages)
    var failing = Failing()
    for page in 16..<32 { try FileContent.write(2, page, to: region) }
    failing.rows.append(try FileHeatMap.Row("written", region))
    store.set { hooks in
      hooks.writing = { transfer throws(PinError) in
        if transfer.pages.contains(broken) { throw PinError(.inputOutput, operation: "write page \(broken)") }
      }
    }
    failing.errors = [flush(region), flush(region)]
    failing.rows.append(try FileHeatMap.Row("flushed, with EIO", region))
    failing.isDirty = try region.filePageState(broken).isDirty
    failing.memory = try FileContent.rounds(of: region)[broken]
    failing.fileBefore = FileContent.round(try file.page(broken), of: broken)
    store.set { $0 = WatchedStore.Hooks() }
    failing.lastError = flush(region)
    failing.rows.append(try FileHeatMap.Row("flushed again", region))
    failing.fileAfter = FileContent.round(try file.page(broken), of: broken)
    failing.wrong = try FileContent.rounds(of: file, pages: pages).enumerated().count { page, round in
      round != ((16..<32).contains(page) ? 2 : 1)
    }
    try space.close()
    return failing
  }

  static func flush(_ region: Region) -> PinError.Code? {
    do { try region.flush() } catch { return error.code }
    return nil
  }
}
