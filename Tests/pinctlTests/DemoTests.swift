import ArgumentParser
import Foundation
import PinKit
import Terminal
import Testing

@testable import Demos
@testable import pinctl

/// A directory of files that goes with the test.
private struct Files: ~Copyable {
  let directory = FileManager.default.temporaryDirectory.appendingPathComponent("pinctl-\(UUID().uuidString)")

  init() throws { try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true) }
  deinit { try? FileManager.default.removeItem(at: directory) }

  func write(_ name: String, _ bytes: some Sequence<UInt8>) throws -> String {
    let file = directory.appendingPathComponent(name)
    try Data(bytes).write(to: file)
    return file.path
  }
}

private let verse = """
  It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the \
  epoch of belief, it was the epoch of incredulity; naïve, 1775, it’s IT.
  """

@Suite("pinctl demo", .serialized) struct DemoTests {
  @Test("W5/K1/W1: every claim holds, by every mechanism, and the JSON says so")
  func tracks() throws {
    let files = try Files()
    let text = try files.write("verse.txt", verse.utf8)
    let (code, output, error) = try pinctl(["demo", "track", text, text, "--json", "--seconds", "0.3"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "track")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(Set(result.claims.map(\.contract)).isSuperset(of: ["W5", "K1"]))
    let seen = Set(result.measurements.map(\.subject)).union(result.skipped.map(\.subject))
    #expect(seen == ["untracked", "handlerThread", "inPlace", "asynchronous", "mprotect"])
  }

  @Test("W5/W6: `pinctl demo` shows the main job, and says at its end what it claimed and how long it took")
  func showsMain() throws {
    let command = try #require(try Pinctl.parseAsRoot(["demo", "--json"]) as? CheckpointCommand)
    #expect(command.json)
    let size = ["--size", "4", "--seconds", "0.2"]
    let (code, output, error) = try pinctl(["demo", "--json"] + size)
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "checkpoint" && result.ok && result.skipped.isEmpty)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(Set(result.claims.map(\.contract)).isSuperset(of: ["W5", "W6"]))
    #expect(!result.measurements.contains { $0.subject.contains("fork") })
    #expect(result.measurements.contains { $0.name == "took" && $0.unit == "s" && $0.value > 0 })
    let shown = String(decoding: try pinctl(["demo"] + size).output, as: UTF8.self)
    #expect(!shown.contains("\u{1b}"))
    let ending = shown.split(separator: "\n").suffix(result.claims.count + 2)
    #expect(ending.filter { $0.hasPrefix("  ✓ holds  ") }.count == result.claims.count, "\(ending)")
    #expect(ending.dropLast().last == "All \(result.claims.count) claims hold.")
    #expect(ending.last?.hasPrefix("It took ") == true)
    for wrong in [["--size", "0"], ["--seconds", "0"]] { #expect(try pinctl(["demo"] + wrong).code == 64) }
  }

  @Test("`pinctl demo all` means all of them, and prints an array") func runsAll() throws {
    let command = try #require(try Pinctl.parseAsRoot(["demo", "all", "--json"]) as? DemoAllCommand)
    #expect(command.json)
    #expect(Set(DemoCatalogue.all.map(\.name)).isSuperset(of: ["track", "cow", "snapshot", "notify"]))
    let printed = try [DemoResult(demo: "a", claims: []), DemoResult(demo: "b", claims: [])].json()
    #expect(try JSONDecoder().decode([DemoResult].self, from: Data(printed.utf8)).map(\.demo) == ["a", "b"])
  }

  @Test("Plain output has no escape codes, and a picture")
  func drawsPlainly() throws {
    let files = try Files()
    let text = try files.write("verse.txt", verse.utf8)
    let (code, output, _) = try pinctl(["demo", "track", text, "--mechanism", "mprotect", "--seconds", "0.2"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    #expect(shown.contains("\nbuckets   ") && shown.contains("\nwords     ") && shown.contains("\npostings  "))
    #expect(shown.contains("✓ holds  W5"))
  }

  @Test("The exit code of a demo is that of its claims") func exits() throws {
    struct Told: Demo {
      var name = "told"
      var summary = ""
      var claims: [Claim]
      func run(on stage: DemoStage) throws -> DemoResult { DemoResult(demo: name, claims: claims) }
    }
    let good = Claim(contract: "W3", claim: "a", holds: true, evidence: "")
    let bad = Claim(contract: "W3", claim: "b", holds: false, evidence: "")
    try DemoCommand.perform(Told(claims: [good]), on: DemoStage(colours: .none, width: 80), json: false)
    for claims in [[good, bad], []] {
      #expect(throws: ExitCode.failure) {
        try DemoCommand.perform(Told(claims: claims), on: DemoStage(colours: .none, width: 80), json: false)
      }
    }
  }

  @Test("Input that makes no sense is refused with its name and a reason, code 64")
  func refuses() throws {
    let files = try Files()
    let empty = try files.write("empty", [])
    let binary = try files.write("binary", [0x41, 0x20, 0, 1])
    let marks = try files.write("marks", "... --- ...".utf8)
    let missing = files.directory.appendingPathComponent("missing").path
    for (path, reason) in [
      (empty, "is empty"), (binary, "is not text"), (missing, "no such file"), (files.directory.path, "is a directory"),
      (marks, "not one word"), ("/dev/zero", "not a regular file"),
    ] {
      let (code, output, error) = try pinctl(["demo", "track", path, "--json"])
      #expect(code == 64)
      #expect(output.isEmpty)
      #expect(error.contains(path) && error.contains(reason), "\(error)")
    }
    let word = try files.write("word", "one".utf8)
    #expect(try pinctl(["demo", "track", word, "--json", "--seconds", "0.1", "--mechanism", "mprotect"]).code == 0)
    #expect(try pinctl(["demo", "track", "--mechanism", "magic"]).code == 64)
    #expect(try pinctl(["demo", "track", "--seconds", "0"]).code == 64)
    #expect(try pinctl(["demo", "--help"]).code == 0)
  }
}

@Suite("Demo checker") struct TrackCheckerTests {
  private func set(_ pages: Int...) -> DirtySet { DirtySet(pageCount: 16, runs: pages.map { $0..<$0 + 1 }) }

  /// Pages 1 and 2 were written before the racing collection, 2 and 3 after it.
  private var good: TrackInterval {
    TrackInterval(
      number: 0, racing: set(1, 2), quiet: set(2, 3), written: set(1, 2, 3), writtenLater: set(2, 3),
      differing: set(2, 3), copiesRacing: true, kernel: set(2, 3))
  }

  /// The claims that do not hold, by a word of each.
  private func failing(_ interval: TrackInterval) -> [String] {
    var checker = TrackChecker(asksKernel: true, name: { _ in "somewhere" })
    checker.judge(interval)
    #expect(checker.hasSeenEnough)
    let words = ["missed", "returned", "not written", "copied", "kernel"]
    return checker.claims("test", oracle: "an oracle").filter { !$0.holds }.map { claim in
      words.first { claim.claim.contains($0) } ?? claim.claim
    }
  }

  @Test("A faultless interval is accepted") func accepts() { #expect(failing(good) == []) }

  @Test("A missed page is found, by its bytes or by the log alone") func findsMissedPages() {
    var interval = good
    interval.differing = set(2, 3, 9)
    #expect(failing(interval) == ["missed"])
    interval = good
    interval.written = set(1, 2, 3, 9)
    #expect(failing(interval) == ["missed"])
  }

  @Test("A page that was not written is found") func findsFalsePages() {
    var interval = good
    interval.racing = set(1, 2, 7)
    #expect(failing(interval) == ["not written"])
  }

  @Test("A write after collect() that the next set lacks is found") func findsLateWrites() {
    var interval = good
    interval.writtenLater = set(1, 2, 3)
    #expect(failing(interval) == ["returned"])
  }

  @Test("A copy that changed without being named is found") func findsStaleCopies() {
    var interval = good
    interval.differing = set(1, 2, 3)
    #expect(failing(interval) == ["copied"])
  }

  @Test("A set that is not the kernel's is found, either way") func findsDisagreement() {
    var interval = good
    interval.kernel = set(2)
    #expect(failing(interval) == ["kernel"])
    interval.kernel = set(2, 3, 4)
    #expect(failing(interval) == ["kernel"])
  }

  @Test("Nothing judged proves nothing") func doubtsNothing() {
    let claims = TrackChecker(asksKernel: true, name: { _ in "" }).claims("test", oracle: "an oracle")
    #expect(!claims.contains { $0.holds })
    #expect(!DemoResult(demo: "none", claims: []).ok)
  }

  @Test("An index that lost a write is found") func auditsIndex() throws {
    let corpus = try TrackCorpus(texts: [.init(name: "verse", bytes: Array(verse.utf8))])
    #expect(corpus.counts[Array("it".utf8)[...]] == 7)
    let layout = TrackIndexLayout(corpus: corpus, copies: 3, writers: 2, pageSize: 4096)
    let space = try AddressSpace()
    let region = try space.map(.anonymous(hugePages: .never), pages: layout.pageCount)
    let logs = (0..<2).map { _ in WriteLog(pageCount: layout.pageCount) }
    let round = TrackRound(region: region, corpus: corpus, copies: 3, layout: layout, gate: TrackGate(), logs: logs)
    round.start()
    while !round.wait(milliseconds: 100) {}
    #expect(round.failure == nil)
    #expect(try Self.audit(round) == .init(words: corpus.counts.count, occurrences: corpus.wordCount * 3))
    // The count of the first word.
    try region.store(UInt32(1), toByteOffset: layout.entries.lowerBound + 4)
    #expect(try Self.audit(round).wrong == 1)
    try space.close()
  }

  private static func audit(_ round: TrackRound) throws -> TrackIndex.Audit {
    try unsafe round.region.withUnsafeMutableBytes { bytes in
      unsafe round.index.audit(UnsafeRawBufferPointer(bytes), round.corpus, copies: round.copies)
    }
  }
}
