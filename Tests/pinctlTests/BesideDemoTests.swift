import CTestSupport
import Foundation
import PinKit
import Testing

@testable import Demos

@Suite("pinctl demo beside", .serialized) struct BesideDemoTests {
  @Test("K3/K4/K5/K6/P8/P9: every claim holds, and the JSON says so")
  func claims() throws {
    let (code, output, error) = try pinctl(["demo", "beside", "--json"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "beside")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    // Each scene was shown, or says what this machine lacks.
    let shown = result.claims.map(\.claim).joined(separator: "\n") + result.skipped.map(\.subject).joined(separator: "\n")
    for scene in BesideDemo.all { #expect(shown.contains(scene.title), "\(scene.title)") }
    #expect(Set(result.claims.map(\.claim)).count == result.claims.count)
  }

  @Test("A scene that does not exist is refused, code 64") func refuses() throws {
    #expect(try pinctl(["demo", "beside", "--scene", "nothing"]).code == 64)
  }
}

/// A judge that lets anything pass proves nothing.
@Suite("What the beside demo claims") struct BesideJudgeTests {
  private func failing(_ claims: [Claim]) -> [String] { claims.filter { !$0.holds }.map(\.contract) }

  @Test("K4: one page that is wrong or not listed is found, and so is a run that looked at none") func compaction() {
    let scene = BesideCompactionScene()
    let good = BesideCompactionScene.Outcome(snapshots: 3, pages: 300, wrong: 0, unlisted: 0, moved: 9)
    func broken(_ change: (inout BesideCompactionScene.Outcome) -> Void) -> [String] {
      var outcome = good
      change(&outcome)
      return failing(scene.judge(outcome))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.wrong = 1 } == ["K4"])
    #expect(broken { $0.unlisted = 1 } == ["K4"])
    #expect(broken { $0 = .init() } == ["K4", "K4"])
  }

  @Test("K5: a byte in a file of the program's, and a call that did the wrong thing, are found") func descriptors() {
    let scene = BesideDescriptorScene()
    let done = [
      "the clone is written", "another clone is made", "writes are collected", "the snapshot is read", "the space is closed",
    ]
    func broken(_ change: (inout BesideDescriptorScene.Outcome.Round) -> Void) -> [String] {
      var round = BesideDescriptorScene.Outcome.Round(
        name: "all", touched: 0, files: 64, done: done, asked: done.count)
      change(&round)
      return failing(scene.judge(.init(rounds: [round])))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.touched = 1 } == ["K5"])
    #expect(broken { $0.files = 0 } == ["K5"])
    #expect(broken { $0.wrong = [$0.done.removeFirst()] } == ["K5"])
    #expect(broken { $0.refused = [$0.done.removeFirst()] } == [], "refused with a reason")
    #expect(broken { $0.refused = [$0.done.removeLast()] } == ["K5"], "closing may not be refused")
    #expect(broken { _ = $0.done.removeFirst() } == ["K5"], "something that nobody speaks of")
  }

  @Test("K5/K3: a lost write, a stop that was none, and an accusation are found") func stops() {
    let scene = BesideStopScene()
    func broken(_ change: (inout BesideStopScene.Outcome) -> Void) -> [String] {
      var outcome = BesideStopScene.Outcome(
        stops: 2, stoppedSeconds: 5, patience: 2, written: 64, collected: 64, alarms: [])
      change(&outcome)
      return failing(scene.judge(outcome))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.written = 63 } == ["K5"])
    #expect(broken { $0.collected = 63 } == ["K5"])
    #expect(broken { $0.stoppedSeconds = 3 } == ["K5"])
    #expect(broken { $0.alarms = ["a reader is stuck"] } == ["K3"])
  }

  @Test("K5/K3: in the jail a write that is not collected, and a snapshot that is wrong, are found") func jails() {
    let scene = BesideJailScene()
    func broken(_ change: (inout BesideJailScene.Outcome) -> Void) -> [String] {
      let kinds = ["asynchronous", "handlerThread", "inPlace", "mprotect"].map {
        BesideJailScene.Outcome.Kind(mechanism: $0, collected: 43, written: 43, wrong: 0)
      }
      var outcome = BesideJailScene.Outcome(kinds: kinds, alarms: [])
      change(&outcome)
      return failing(scene.judge(outcome))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.kinds[1].collected = 42 } == ["K5"])
    #expect(broken { $0.kinds[1].wrong = 1 } == ["K5"])
    #expect(broken { $0.kinds[1].wrong = nil } == ["K5"])
    #expect(
      broken {
        $0.kinds[1].wrong = nil
        $0.kinds[1].refusal = "no /proc"
      } == [])
    #expect(broken { $0.alarms = ["closed"] } == ["K3"])
    #expect(broken { $0 = .init() } == ["K5", "K5", "K3"])
  }

  @Test("K5: locked memory that reads as zeros, or is not written, is found") func locks() {
    let scene = BesideLockScene()
    func broken(_ change: (inout BesideLockScene.Outcome) -> Void) -> [String] {
      var outcome = BesideLockScene.Outcome(
        kinds: ["before", "after"].map { .init(name: $0, read: 64, durable: 64) },
        discarded: ["anonymous": true, "pool": true])
      change(&outcome)
      return failing(scene.judge(outcome))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.kinds[0].read = 63 } == ["K5"])
    #expect(broken { $0.kinds[1].durable = 0 } == ["K5"])
    #expect(broken { $0.discarded["pool"] = false } == ["K5"])
    #expect(broken { $0 = .init() } == ["K5", "K5"])
  }

  @Test("K6: a page beside a guard that is wrong, and a guard that is gone, are found") func guards() {
    let scene = BesideGuardScene()
    func broken(_ change: (inout BesideGuardScene.Outcome) -> Void) -> [String] {
      let kinds = ["handlerThread", "inPlace", "mprotect"].map { BesideGuardScene.Outcome.Kind(mechanism: $0) }
      var outcome = BesideGuardScene.Outcome(guards: kinds, cuts: kinds)
      change(&outcome)
      return failing(scene.judge(outcome))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.guards[0].wrong = 1 } == ["K6"])
    #expect(broken { $0.guards[2].guardsGone = 1 } == ["K6"])
    #expect(broken { $0.cuts[1].wrong = 1 } == ["K6"])
    #expect(broken { $0 = .init() } == ["K6", "K6"])
  }
}
