internal import Foundation
internal import Glibc
internal import PinKit
internal import Terminal

/// Processes that are killed while they write and flush.
struct FileKillScene: DemoScene {
  let title = "kill -9"
  let needs: [DemoNeed] = [.stores]
  var kills: Int

  /// What a process left that was killed.
  struct Attempt: Sendable, Hashable {
    /// After so many ms it was killed; the last round whose flush had returned before; and of each page the round that the file has then,
    /// `nil` for a mixture.
    var milliseconds = 0
    var flushed = 0
    var rounds: [Int?] = []
    /// By which signal it ended.
    var signal: CInt = 0

    var mixtures: Int { rounds.count { $0 == nil } }
    /// Pages of a round before the one that was flushed.
    var lost: Int { rounds.count { ($0 ?? flushed) < flushed } }
    /// Of a round that nobody can have written yet.
    var impossible: Int { rounds.count { ($0 ?? flushed) > flushed + 1 } }
    var newer: Int { rounds.count { $0 == flushed + 1 } }
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A process writes all \(Self.pages) pages of a file through a region, in two parts and no order, flushes each, says so, and begins the "
        + "next round. It is killed at a "
        + "random moment; the file is read by this one, which has never mapped it. Then the next process goes on with it.")
    let attempts = try perform()
    stage.show()
    stage.show("  " + stage.bold("killed after   flushed   pages of it   of the next   mixtures   lost"))
    for one in attempts {
      let numbers = [
        ("\(one.milliseconds) ms", 12), (one.flushed.grouped, 10), ((one.rounds.count { $0 == one.flushed }).grouped, 14),
        (one.newer.grouped, 14), ("\(one.mixtures)", 11), ("\(one.lost)", 7),
      ]
      stage.show("  " + numbers.map { $0.0.aligned(to: $0.1) }.joined())
    }
    stage.show()
    let claims = Self.judge(attempts)
    stage.show(claims)
    return DemoFindings(
      claims: claims,
      measurements: [
        .init(subject: "kill -9", name: "rounds flushed", value: Double(attempts.last?.flushed ?? 0), unit: "rounds")
      ])
  }

  static func judge(_ attempts: [Attempt]) -> [Claim] {
    let killed = attempts.count { $0.signal == SIGKILL }
    let lost = attempts.reduce(0) { $0 + $1.lost }
    let mixtures = attempts.reduce(0) { $0 + $1.mixtures }
    let impossible = attempts.reduce(0) { $0 + $1.impossible }
    let pages = attempts.reduce(0) { $0 + $1.rounds.count }
    return [
      Claim(
        contract: "W5", claim: "kill -9: every page that was flushed is there",
        holds: !attempts.isEmpty && killed == attempts.count && attempts.contains { $0.flushed > 1 }
          && attempts.allSatisfy { !$0.rounds.isEmpty } && lost == 0 && impossible == 0,
        evidence:
          "Of \(attempts.count) processes \(killed) were killed, the last with \(attempts.last?.flushed ?? 0) rounds flushed. "
          + "\(lost) of \(pages) pages are older than their flush, \(impossible) newer than can be."),
      Claim(
        contract: "W5", claim: "kill -9: no page is a mixture",
        holds: pages > 0 && mixtures == 0, evidence: "\(mixtures) of \(pages) pages are of two rounds, or of another page."),
    ]
  }

  static let pages = 128

  func perform() throws -> [Attempt] {
    let files = try LedgerFiles(name: "file")
    let file = try DemoFile(files.path("killed"), FileContent.pages(1, Self.pages))
    var flushed = 1
    return try (0..<kills).map { _ in
      var attempt = try Self.kill(file, after: .random(in: 1...60))
      // None came to a flush of its own: what was there before must be.
      attempt.flushed = max(attempt.flushed, flushed)
      attempt.rounds = try FileContent.rounds(of: file, pages: Self.pages)
      flushed = max(attempt.flushed, attempt.rounds.compactMap { $0 }.min() ?? flushed)
      return attempt
    }
  }

  /// Starts a writer, and kills it so many ms after its first flush.
  private static func kill(_ file: DemoFile, after milliseconds: Int) throws -> Attempt {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
    process.arguments = ["demo", "file-writer", file.path]
    let output = Pipe()
    process.standardOutput = output
    try process.run()
    var attempt = Attempt(milliseconds: milliseconds)
    var said = output.fileHandleForReading.readData(ofLength: 8)
    usleep(UInt32(milliseconds * 1000))
    Glibc.kill(process.processIdentifier, SIGKILL)
    process.waitUntilExit()
    attempt.signal = process.terminationReason == .uncaughtSignal ? process.terminationStatus : 0
    said += output.fileHandleForReading.readDataToEndOfFile()
    let last = said.suffix(said.count % 8 == 0 ? 8 : 0)
    attempt.flushed = last.enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
    return attempt
  }
}
