import Foundation
import Guest
import PinKit
import Terminal
import Testing

@testable import Demos
@testable import pinctl

private let canShow = GuestMachine.unavailable == nil
private let cannotShow = Comment(rawValue: GuestMachine.unavailable ?? "")

@Suite("pinctl demo kvm", .serialized) struct KvmDemoTests {
  @Test("N1/N5/N6/W1/W5/W6: every claim holds, and the JSON says so", .enabled(if: canShow, cannotShow)) func claims() throws
  {
    let (code, output, error) = try pinctl(["demo", "kvm", "--json", "--rounds", "12"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "kvm")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(Set(result.claims.map(\.claim)).count == result.claims.count)
    #expect(Set(result.claims.map(\.contract)) == ["N1", "N5", "N6", "W1", "W5", "W6"])
  }

  @Test("Plain output has no escape codes, and a picture", .enabled(if: canShow, cannotShow))
  func drawsPlainly() throws {
    let (code, output, _) = try pinctl(["demo", "kvm", "--rounds", "8"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    #expect(shown.contains("\npage 0  ") && shown.contains("✓ holds  W6") && shown.contains("8 rounds"))
  }

  @Test("Without KVM every scene is skipped with the reason, which is no failure") func absent() throws {
    var demo = KvmDemo()
    demo.unavailable = { "there is no /dev/kvm" }
    let stage = DemoStage(colours: .none, width: 80)
    let result = try demo.run(on: stage)
    #expect(result.ok && result.claims.isEmpty && result.measurements.isEmpty)
    #expect(result.skipped.count == 4 && result.skipped.allSatisfy { $0.reason == "there is no /dev/kvm" })
    try DemoCommand.perform(demo, on: stage, json: false)
    let printed = try result.json()
    #expect(try JSONDecoder().decode(DemoResult.self, from: Data(printed.utf8)).ok)
  }

  @Test("Numbers that make no sense are refused, code 64") func refuses() throws {
    for rounds in ["3", "1001", "many"] { #expect(try pinctl(["demo", "kvm", "--rounds", rounds]).code == 64) }
  }
}

@Suite("What the kvm demo claims") struct KvmJudgeTests {
  /// The claims that do not hold, by contract.
  private func failing(_ claims: [Claim]) -> [String] { claims.filter { !$0.holds }.map(\.contract) }

  private func set(_ pages: Int...) -> DirtySet { DirtySet(pageCount: 16, runs: pages.map { $0..<$0 + 1 }) }

  @Test("N6/N1: a wrong set, a translation that stays, and a refusal too many are found") func tracking() {
    let good = KvmTrackScene.Outcome(
      mechanism: .inPlace, sets: [(set(4, 5), set(4, 5)), (set(6), set(6))], renewed: (12, 0, 12), refusals: 3)
    #expect(failing(KvmTrackScene.judge(good)) == [])
    for (change, contract) in [
      ({ $0.sets[1].collected = self.set(6, 7) }, "N6"), ({ $0.sets[1].collected = self.set() }, "N6"),
      ({ $0.wrong = 1 }, "N6"), ({ $0.renewed = (11, 0, 12) }, "N6"), ({ $0.renewed = (12, 12, 12) }, "N6"),
      ({ $0.refusals = 2 }, "N1"), ({ $0.mechanism = .handlerThread }, "N1"),
    ] as [((inout KvmTrackScene.Outcome) -> Void, String)] {
      var outcome = good
      change(&outcome)
      #expect(failing(KvmTrackScene.judge(outcome)) == [contract])
    }
    #expect(failing(KvmTrackScene.judge(.init(mechanism: .asynchronous))) == ["N6"])
  }

  @Test("W6/W5: a torn snapshot, a lost store, and a guest that stood still are found") func snapshots() {
    let good = KvmSnapshotScene.Outcome(subject: "memory", flaws: [nil, nil], stores: 9, span: 5)
    #expect(failing(KvmSnapshotScene.judge(good)) == [])
    for (change, contract) in [
      ({ $0.flaws[1] = "another word" }, "W6"), ({ $0.span = 0 }, "W6"), ({ $0.flaws = [] }, "W6"),
      ({ $0.finalFlaw = "another word" }, "W5"), ({ $0.stores = 0 }, "W5"),
    ] as [((inout KvmSnapshotScene.Outcome) -> Void, String)] {
      var outcome = good
      change(&outcome)
      #expect(failing(KvmSnapshotScene.judge(outcome)) == [contract])
    }
  }

  @Test("W5/N5/W1: a changed original, frames that did not part, and a store on a read-only page are found") func others() {
    let clone = KvmCloneScene.Outcome(
      mechanism: .mprotect, checked: 8, flaws: [nil, nil], stores: [3, 4], parted: 2, pages: 2)
    #expect(failing(KvmCloneScene.judge(clone)) == [])
    for (change, contract) in [
      ({ $0.changed = 1 }, "W5"), ({ $0.flaws[0] = "another word" }, "N5"), ({ $0.parted = 1 }, "N5"),
      ({ $0.stores[1] = 0 }, "N5"),
    ] as [((inout KvmCloneScene.Outcome) -> Void, String)] {
      var outcome = clone
      change(&outcome)
      #expect(failing(KvmCloneScene.judge(outcome)) == [contract])
    }
    let good = KvmChangeScene.Outcome(stops: 2, checked: 8, discards: 1, stores: 9)
    #expect(failing(KvmChangeScene.judge(good)) == [])
    for (change, contract) in [
      ({ $0.changed = 1 }, "W1"), ({ $0.unstopped = 1 }, "W1"), ({ $0.wrong = 1 }, "W5"), ({ $0.discards = 0 }, "W5"),
    ] as [((inout KvmChangeScene.Outcome) -> Void, String)] {
      var outcome = good
      change(&outcome)
      #expect(failing(KvmChangeScene.judge(outcome)) == [contract])
    }
  }

  @Test("A walk knows what every word held at any moment, and finds a word that does not") func walks() {
    for hop in [1, 3, 77, 0x2545] {
      let walk = GuestWalk(4..<12, pageSize: 4096, hop: hop)
      var words = [UInt64](repeating: 0, count: walk.wordCount)
      for number in UInt64(1)...100 {
        let stores = walk.stores(from: number, count: 1)
        words[stores.offset / 1024] = number
        #expect(walk.flaw(in: words, from: number, to: number) == nil)
        #expect(walk.flaw(in: words, from: number + 1, to: number + 9) != nil)
        #expect(walk.flaw(in: words, from: 0, to: number - 1) != nil)
        var torn = words
        torn[Int(number) % torn.count] += 2
        #expect(walk.flaw(in: torn, from: 0, to: 1000) != nil)
      }
    }
  }
}
