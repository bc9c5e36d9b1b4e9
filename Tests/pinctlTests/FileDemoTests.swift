import Foundation
import PinKit
import Testing

@testable import Demos

private let canShow = (try? Userfaultfd.availableFeatures().contains(.missingShmem)) == true

@Suite("pinctl demo file", .serialized) struct FileDemoTests {
  @Test("N2/N3/N12/N13/W5/K1/K2: every claim holds, and the JSON says so", .enabled(if: canShow, "needs userfaultfd"))
  func claims() throws {
    let (code, output, error) = try pinctl(["demo", "file", "--json", "--kills", "6"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "file")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(Set(result.claims.map(\.contract)).isSuperset(of: ["N2", "N3", "N12", "N13", "W5", "K1", "K2"]))
    #expect(Set(result.claims.map(\.claim)).count == result.claims.count)
    // Which of the two was full is said.
    #expect(result.skipped.allSatisfy { $0.subject == "a real small file system" })
    #expect(error.isEmpty, "failures that were provoked are no news: \(error)")
  }

  @Test("Plain output has no escape codes, and the heat maps", .enabled(if: canShow, "needs userfaultfd"))
  func drawsPlainly() throws {
    let (code, output, _) = try pinctl(["demo", "file", "--kills", "1"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    for word in ["block of 8  oooooooo····", "oWo", "mixtures", "may it be written?", "✓ holds  N13"] {
      #expect(shown.contains(word), "\(word)")
    }
  }

  @Test("The store without a disk to fill says the same", .enabled(if: canShow, "needs userfaultfd")) func alone() throws {
    let outcome = try FileSpaceScene.performAlone(LedgerFiles(name: "file"))
    for claim in FileSpaceScene.judge(outcome) { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(!outcome.isReal && outcome.granted == 100)
  }

  @Test("Numbers that make no sense are refused, code 64; the process that is killed is not advertised") func refuses()
    throws
  {
    for kills in ["0", "1001", "many"] { #expect(try pinctl(["demo", "file", "--kills", kills]).code == 64) }
    let help = String(decoding: try pinctl(["demo", "--help"]).output, as: UTF8.self)
    #expect(help.contains("gup") && help.contains("file") && !help.contains("file-writer"))
    #expect(Set(DemoCatalogue.all.map(\.name)).isSuperset(of: ["gup", "file"]))
  }
}

@Suite("What the file demo claims") struct FileJudgeTests {
  /// The claims that do not hold, by contract.
  private func failing(_ claims: [Claim]) -> [String] { claims.filter { !$0.holds }.map(\.contract) }

  /// Each change makes claims of its contract fail, and no other.
  private func check<Outcome>(
    _ good: Outcome, _ judge: (Outcome) -> [Claim], _ changes: [((inout Outcome) -> Void, String)]
  ) {
    #expect(failing(judge(good)) == [])
    for (index, (change, contract)) in changes.enumerated() {
      var outcome = good
      change(&outcome)
      #expect(Set(failing(judge(outcome))) == [contract], "change \(index)")
    }
  }

  private typealias Fill = FileFillScene.Outcome

  @Test("K1/W5: pages too many and too few, unmapped ones, wrong bytes, and a window that does not grow are found")
  func filling() {
    let good = Fill(
      policy: "block", expected: [0, 1], row: .init("", [.clean, .clean, .absent]), mapped: [0, 1], reads: 1)
    check(
      [good], FileFillScene.judge,
      [
        ({ $0[0].row.cells[2] = .clean }, "K1"), ({ $0[0].row.cells[1] = .absent }, "K1"), ({ $0[0].mapped = [0] }, "K1"),
        ({ $0[0].mapped = [0, 1, 2] }, "K1"), ({ $0[0].wrong = 1 }, "W5"),
      ])
    #expect(failing(FileFillScene.judge([Fill]())) == ["K1", "W5"])
    check(
      FileFillScene.Sequence(pages: 48, windows: [16, 32]), FileFillScene.judge,
      [
        ({ $0.wrong = 1 }, "W5"), ({ $0.windows = [16, 16, 16] }, "W5"), ({ $0.windows = [16, 32, 16] }, "W5"),
        ({ $0.windows = [16] }, "W5"), ({ $0.windows = [] }, "W5"),
      ])
  }

  @Test("N3/N2/W5: a store that is asked too late, a page that was open, a subscriber told late are found") func order() {
    let (program, store, subscriber) = (FileOrderScene.program, FileOrderScene.store, FileOrderScene.subscriber)
    var good = FileOrderScene.Outcome()
    good.events = [
      NotifyEvent(actor: program, kind: .note, text: "flushes"), NotifyEvent(actor: subscriber, kind: .start),
      NotifyEvent(actor: subscriber, kind: .end), NotifyEvent(actor: store, kind: .note, text: "write"),
      NotifyEvent(actor: store, kind: .note, text: "make durable"),
    ]
    good.asked = [.init(isLocked: true)]
    good.written = .init(isDirty: true, isWritable: true)
    good.writing = [.init(isUnderWriteback: true)]
    good.fileRound = 2
    good.refusal = .outOfSpace
    good.roundAfterRefusal = 1
    check(
      good, FileOrderScene.judge,
      [
        ({ $0.asked = [] }, "N3"), ({ $0.asked[0].isLocked = false }, "N3"), ({ $0.asked[0].isWritable = true }, "N3"),
        ({ $0.asked[0].isDirty = true }, "N3"), ({ $0.asked.append(.init(isLocked: true)) }, "N3"),
        ({ $0.written.isWritable = false }, "N3"), ({ $0.refusal = nil }, "N3"), ({ $0.refused.isDirty = true }, "N3"),
        ({ $0.refused.isWritable = true }, "N3"), ({ $0.roundAfterRefusal = 2 }, "N3"),
        ({ $0.writing[0].isWritable = true }, "N2"), ({ $0.writing = [] }, "N2"), ({ $0.events.swapAt(2, 3) }, "N2"),
        ({ $0.events.remove(at: 1) }, "N2"), ({ $0.events.remove(at: 4) }, "N2"),
        ({ $0.fileRound = 1 }, "W5"), ({ $0.flushed.isDirty = true }, "W5"),
      ])
  }

  @Test("K2/W5: a fault that waited, a silent success after a failure, and a page that was dropped are found")
  func failures() {
    check(
      FileFailureScene.Slow(stuck: 8, served: 56, expected: 56, released: 8), FileFailureScene.judge,
      [
        ({ $0.stuck = 7 }, "K2"), ({ $0.served = 55 }, "K2"), ({ $0.released = 7 }, "K2"), ({ $0.expected = 0 }, "K2"),
      ])
    check(
      FileFailureScene.Failing(
        errors: [.inputOutput, .inputOutput], memory: 2, fileBefore: 1, fileAfter: 2, isDirty: true), FileFailureScene.judge,
      [
        ({ $0.errors[1] = nil }, "W5"), ({ $0.errors = [] }, "W5"), ({ $0.isDirty = false }, "W5"),
        ({ $0.memory = 1 }, "W5"),
        ({ $0.fileBefore = nil }, "W5"), ({ $0.fileAfter = 1 }, "W5"), ({ $0.lastError = .inputOutput }, "W5"),
        ({ $0.wrong = 1 }, "W5"),
      ])
    let good = FileSpaceScene.Outcome(
      flushError: .outOfSpace, dirtyAfter: 3, written: 9, granted: 4, writerError: .outOfSpace, isRefusedDirty: false)
    check(
      good, FileSpaceScene.judge,
      [
        ({ $0.flushError = nil }, "W5"), ({ $0.dirtyAfter = 0 }, "W5"), ({ $0.lost = 1 }, "W5"), ({ $0.missing = 1 }, "W5"),
        ({ $0.nextError = .outOfSpace }, "W5"), ({ $0.written = 0 }, "W5"), ({ $0.writerError = nil }, "N3"),
        ({ $0.isRefusedDirty = true }, "N3"), ({ $0.granted = 0 }, "N3"), ({ $0.grantedFlushError = .outOfSpace }, "N3"),
        ({ $0.grantedMissing = 1 }, "N3"),
      ])
  }

  @Test("N12/N13: a hot page that was dropped, a cold one that stayed, a pin, and wrong bytes are found") func reclaiming() {
    let good = FileReclaimScene.Outcome(
      hot: [1, 5], dirty: 3, afterFirst: [1, 3, 5], afterSecond: [3], dropped: [5, 2], checked: 16)
    check(
      good, FileReclaimScene.judge,
      [
        ({ $0.afterFirst = [1, 3] }, "N13"), ({ $0.afterFirst = [1, 2, 3, 5] }, "N13"), ({ $0.afterFirst = [1, 5] }, "N13"),
        ({ $0.afterSecond = [] }, "N12"), ({ $0.afterSecond = [1, 3] }, "N12"), ({ $0.pins = 1 }, "N12"),
        ({ $0.wrong = 1 }, "N12"),
        ({ $0.checked = 0 }, "N12"),
      ])
  }

  @Test("W5: a flushed page that is gone, a mixture, a page from the future, and a process that was not killed are found")
  func kills() {
    let good = [FileKillScene.Attempt(milliseconds: 5, flushed: 7, rounds: [7, 8, 7], signal: 9)]
    check(
      good, FileKillScene.judge,
      [
        ({ $0[0].rounds[1] = 6 }, "W5"), ({ $0[0].rounds[1] = nil }, "W5"), ({ $0[0].rounds[1] = 9 }, "W5"),
        ({ $0[0].signal = 0 }, "W5"), ({ $0[0].rounds = [] }, "W5"),
        (
          {
            $0[0].flushed = 1; $0[0].rounds = [1, 1, 1]
          }, "W5"
        ),
        ({ $0 = [] }, "W5"),
      ])
  }

  @Test("A page is of a round only if all its words say so") func content() {
    for round in [1, 77, 1 << 30] {
      var bytes = FileContent.page(round, 9)
      #expect(FileContent.round(bytes, of: 9) == round && FileContent.round(bytes, of: 8) == nil)
      bytes.replaceSubrange(2048..., with: FileContent.page(round + 1, 9)[2048...])
      #expect(FileContent.round(bytes, of: 9) == nil)
      #expect(FileContent.round(bytes.dropLast(), of: 9) == nil)
    }
  }
}
