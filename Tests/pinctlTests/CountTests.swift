import Foundation
import Testing

/// What `make test` says at its end of a run whose events are known.
@Suite("The last lines of a test run") struct CountTests {
  private let script = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appending(
    path: "../../scripts/count-tests")

  /// The lines that are printed after those of the run itself, and the exit status.
  private func count(_ events: [String], status: Int) throws -> (lines: [String], status: Int32) {
    let process = Process()
    process.executableURL = script
    // What `swift test` is told last is where its events belong.
    let run = "for path; do :; done; echo ran $1; cat > \"$path\"; exit \(status)"
    process.arguments = ["sh", "-c", run, "sh", "--skip-build"]
    let (input, output) = (Pipe(), Pipe())
    process.standardInput = input
    process.standardOutput = output
    try process.run()
    try input.fileHandleForWriting.write(contentsOf: Data((events.joined(separator: "\n") + "\n").utf8))
    try input.fileHandleForWriting.close()
    let printed = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    let lines = printed.split(separator: "\n").map(String.init)
    #expect(lines.first == "ran --skip-build")
    return (Array(lines.dropFirst()), process.terminationStatus)
  }

  /// A test, and what became of it, as the testing library writes it.
  private func events(_ name: String, _ events: [String]) -> [String] {
    let id = #"P.S\/\#(name)()\/a.swift:1:2"#
    let test =
      #"{"kind":"test","payload":{"displayName":"\#(name) \"it\"","id":"\#(id)","isParameterized":true,"kind":"function","name":"\#(name)()","sourceLocation":{"line":1}},"version":"6.3.0"}"#
    return [test]
      + events.map {
        #"{"kind":"event","payload":{"instant":{"absolute":1.5},\#($0),"testID":"\#(id)"},"version":"6.3.0"}"#
      }
  }

  private let started = #""kind":"testStarted","messages":[]"#
  private let case1 = #""kind":"testCaseStarted","messages":[]"#
  private let cancelled = #""kind":"testCaseCancelled","messages":[]"#
  private let passed = #""kind":"testEnded","messages":[{"symbol":"pass","text":"Test \"x\" passed after 0.1 seconds."}]"#
  private let failed =
    #""issue":{"isFailure":true,"isKnown":false},"kind":"issueRecorded","messages":[{"symbol":"fail","text":"no"}]"#

  private func warning(_ reason: String) -> String {
    #""issue":{"isFailure":false,"isKnown":false,"severity":"warning"},"kind":"issueRecorded","messages":[{"symbol":"warning","text":"Issue recorded"},{"symbol":"details","text":"skipped: \#(reason)"}]"#
  }

  @Test("what was skipped is listed with its reason, whole, by cases or in part, and the last line counts all")
  func counts() throws {
    let all =
      events("good", [started, case1, passed])
      + events(
        "off",
        [#""kind":"testSkipped","messages":[{"symbol":"skip","text":"Test \"off\" skipped: \"no \"loop\" device\""}]"#])
      + events(
        "given-up",
        [
          started, cancelled,
          #""kind":"testEnded","messages":[{"symbol":"skip","text":"Test \"a: \"b\"\" was cancelled after 0.003 seconds: \"it has no disk\""}]"#,
        ])
      + events("cases", [started, case1, warning("no xfs"), cancelled, case1, case1, passed])
      + events("all-cases", [started, case1, warning("no xfs"), cancelled, case1, warning("no btrfs"), cancelled, passed])
      + events("part", [started, case1, warning("direct I\\/O: \\/tmp is in memory"), passed])
    let (lines, status) = try count(all, status: 0)
    #expect(status == 0)
    #expect(
      lines == [
        "Passed without a part:", #"  "cases "it"" (S), 1 of 3 cases: no xfs"#,
        #"  "part "it"" (S): direct I/O: /tmp is in memory"#, "Skipped:", #"  "off "it"" (S): no "loop" device"#,
        #"  "given-up "it"" (S): it has no disk"#, #"  "all-cases "it"" (S): no xfs; no btrfs"#,
        #"6 tests: 1 passed, 2 passed without a part, 3 skipped: no xfs (2); no "loop" device; it has no disk; no btrfs; direct I/O: /tmp is in memory"#,
      ])
  }

  @Test("what failed, or had not ended when the run did, is named, and the status stays the run's") func failures() throws {
    let all = events("bad", [started, case1, failed, passed]) + events("crashed", [started, case1])
    let (lines, status) = try count(all, status: 5)
    #expect(status == 5)
    #expect(
      lines == [
        "Failed:", #"  "bad "it"" (S)"#, "Had not ended when the run did:", #"  "crashed "it"" (S)"#,
        "2 tests: 0 passed, 1 failed, 1 had not ended",
      ])
    let (last, code) = try count(events("good", [started, case1, passed]), status: 3)
    #expect(code == 3 && last == ["1 tests: 1 passed, and the run failed (3)"])
    #expect(try count([], status: 1).status == 1)
  }
}
