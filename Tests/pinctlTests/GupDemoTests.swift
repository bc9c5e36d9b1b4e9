import Foundation
import PinKit
import Terminal
import Testing

@testable import Demos

private let canShow =
  (try? SubmissionRing(entries: 1)) != nil
  && (try? Userfaultfd.availableFeatures().isSuperset(of: [.wpAsync, .wpUnpopulated])) == true

@Suite("pinctl demo gup", .serialized) struct GupDemoTests {
  @Test(
    "P1/P3/P6: every claim holds, and the JSON says so", .enabled(if: canShow, "needs io_uring and WP_ASYNC (Linux 6.7)"))
  func claims() throws {
    let (code, output, error) = try pinctl(["demo", "gup", "--json"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "gup")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(Set(result.claims.map(\.contract)) == ["P1", "P3", "P6"])
    #expect(result.claims.count == 10 && Set(result.claims.map(\.claim)).count == 10)
    let lacking = Dictionary(uniqueKeysWithValues: result.measurements.map { ($0.subject, $0.value) })
    #expect(lacking == ["without the rules": 16, "with them": 0])
  }

  @Test(
    "Plain output has no escape codes, and both columns", .enabled(if: canShow, "needs io_uring and WP_ASYNC (Linux 6.7)"))
  func drawsPlainly() throws {
    let (code, output, _) = try pinctl(["demo", "gup"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    let third = try #require(shown.split(separator: "\n").first { $0.contains("3 the device writes") })
    #expect(third.contains("clean, pinned") && third.contains("first!") && third.contains("dirty, pinned"))
    #expect(shown.contains("66 69 72 73 74") && shown.contains("73 65 63 6f 6e 64"), "the file, byte for byte")
    #expect(shown.contains("✓ holds  P3"))
  }

  @Test("Input that makes no sense is refused, code 64") func refuses() throws {
    #expect(try pinctl(["demo", "gup", "--pages", "3"]).code == 64)
  }
}

@Suite("What the gup demo claims") struct GupJudgeTests {
  /// The claims that do not hold, by contract.
  private func failing(_ claims: [Claim]) -> [String] { claims.filter { !$0.holds }.map(\.contract) }

  private func run(_ name: String, keeps: Bool) -> GupRun {
    let all = { (content: GupBytes) in [GupBytes](repeating: content, count: 2) }
    var run = GupRun(name: name, pages: 2)
    for step in GupStep.allCases {
      let isPinned = [.firstWrite, .writing, .written, .secondWrite].contains(step)
      var state = GupState(isDirty: keeps ? isPinned || step == .unpinned : step == .firstWrite, isPinned: isPinned)
      state.isUnderWriteback = keeps ? step == .laterWriting : step == .writing
      let file: GupBytes = step.rawValue < GupStep.written.rawValue ? .old : keeps && step.rawValue > 6 ? .second : .first
      run.rows.append(.init(step: step, state: state, memory: .second, file: file))
    }
    run.memoryBefore = all(.second)
    run.file = all(keeps ? .second : .first)
    run.memoryAfter = run.file
    run.fileBytes = run.file[0].page(0)
    return run
  }

  private var good: GupAccidentScene.Outcome {
    var outcome = GupAccidentScene.Outcome(without: run("without", keeps: false), with: run("with", keeps: true))
    for step in [GupStep.firstWrite, .written, .secondWrite, .unpinned] { outcome.reported[step] = true }
    outcome.reported[.laterWritten] = false
    outcome.snapped = [.first, .first]
    return outcome
  }

  @Test("P3: a lost write, a torn one, a page that was clean in between, and an accident that does not happen are found")
  func accidents() {
    #expect(failing(GupAccidentScene.judge(good)) == [])
    for change in [
      { $0.with.file[1] = .first }, { $0.with.file[0] = .mixed }, { $0.with.memoryAfter[1] = .first }, { $0.with.file = [] },
      { $0.with.rows[3].file = .old },
      { $0.with.rows[3].state.isDirty = false }, { $0.with.rows[4].state.isDirty = false },
      { $0.with.rows[4].state.isPinned = false }, { $0.with.rows[5].state.isDirty = false },
      { $0.with.rows[7].state.isDirty = true }, { $0.with.rows[6].state.isUnderWriteback = false }, { $0.with.rows = [] },
      { $0.without.file[1] = .second }, { $0.without.memoryBefore[0] = .first }, { $0.without.memoryAfter[0] = .second },
      { $0.without.rows[4].state.isDirty = true },
    ] as [(inout GupAccidentScene.Outcome) -> Void] {
      var outcome = good
      change(&outcome)
      #expect(!failing(GupAccidentScene.judge(outcome)).isEmpty)
      #expect(Set(failing(GupAccidentScene.judge(outcome))) == ["P3"])
    }
  }

  @Test("P6: a collection without the pages, one too many, and a snapshot of another moment are found") func observers() {
    for change in [
      { $0.reported[.secondWrite] = false }, { $0.reported[.unpinned] = nil }, { $0.reported[.laterWritten] = true },
      { $0.snapped[1] = .second }, { $0.snapped = [] },
    ] as [(inout GupAccidentScene.Outcome) -> Void] {
      var outcome = good
      change(&outcome)
      #expect(failing(GupAccidentScene.judge(outcome)) == ["P6"])
    }
  }

  @Test("P3: a copy that changes, a device that did not write, and a write that was forgotten are found") func copies() {
    let good = GupStableScene.Outcome(
      given: [.first], later: [.first], pinned: [.second], isDirtyAfter: true, fileAfter: .first, fileInTheEnd: .second)
    #expect(failing(GupStableScene.judge(good)) == [])
    for change in [
      { $0.later = [.second] }, { $0.given = [] }, { $0.pinned = [.first] }, { $0.fileAfter = .mixed },
      { $0.isDirtyAfter = false }, { $0.fileInTheEnd = .first },
    ] as [(inout GupStableScene.Outcome) -> Void] {
      var outcome = good
      change(&outcome)
      #expect(failing(GupStableScene.judge(outcome)) == ["P3"])
    }
    #expect(failing(GupStableScene.judge(.init())) == ["P3", "P3"])
  }

  @Test("P1: a verdict that is not the kernel's, and a refusal without reason or effect are found") func verdicts() {
    let refused = PinVerdict.refused(.needsDirtyTracking(.file(fileSystem: "ext4")))
    func verdict(_ kernel: CInt, _ verdict: PinVerdict) -> [String] {
      failing(GupVerdictScene.judge([.init(memory: "a file", kernel: kernel, verdict: verdict)]))
    }
    #expect(verdict(0, .allowed) == [] && verdict(-14, refused) == [])
    #expect(verdict(-14, .allowed) == ["P1"] && verdict(0, refused) == ["P1"])
    #expect(failing(GupVerdictScene.judge([GupVerdictScene.Trial]())) == ["P1"])
    let good = GupVerdictScene.Refusal(
      code: .needsDirtyTracking,
      message: "The store must hear of a page before it is written. Pin it for one operation only.",
      takesShortPin: true, takesLongPinForReading: true)
    #expect(failing(GupVerdictScene.judge(good)) == [])
    for change in [
      { $0.code = nil }, { $0.code = .pinned }, { $0.message = "No." }, { $0.pinsAfter = 1 }, { $0.takesShortPin = false },
      { $0.takesLongPinForReading = false },
    ] as [(inout GupVerdictScene.Refusal) -> Void] {
      var refusal = good
      change(&refusal)
      #expect(failing(GupVerdictScene.judge(refusal)) == ["P1"])
    }
  }

  @Test("A page is what all of its bytes say") func bytes() {
    for content in [GupBytes.old, .first, .second] {
      var bytes = content.page(3)
      #expect(GupBytes(bytes, page: 3) == content && GupBytes(bytes, page: 4) == .mixed)
      bytes[4095] ^= 1
      #expect(GupBytes(bytes, page: 3) == .mixed)
    }
    let mixture = GupBytes.first.page(0).prefix(2048) + GupBytes.second.page(0).suffix(2048)
    #expect(GupBytes(mixture, page: 0) == .mixed && GupBytes([], page: 0) == .mixed)
  }

  @Test("A timeline marks what is lost") func draws() {
    let lines = GupTimeline(runs: [good.without, good.with]).lines(DemoStage(colours: .none, width: 100))
    #expect(lines.count == 2 + GupStep.allCases.count)
    #expect(lines.contains { $0.contains("first!") } && !lines.contains { $0.hasSuffix("first!") })
  }
}
