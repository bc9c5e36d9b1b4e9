import CTestSupport
import Foundation
import PinKit
import Testing
import Virtqueue

@testable import Demos

@Suite(
  "pinctl demo vring", .serialized,
  .enabled(
    if: ct_has_thread_sanitizer() == 0,
    "the thread sanitizer keeps a lock of its own while an ordered store waits for its fault"))
struct VringDemoTests {
  @Test("W5/W1: every claim holds, and the JSON says so")
  func claims() throws {
    let (code, output, error) = try pinctl(["demo", "vring", "--json", "--seconds", "0.7", "--rounds", "2000"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "vring" && result.ok && result.skipped.isEmpty)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(
      result.claims.map(\.claim) == VringExchange.Way.allCases.flatMap {
        [
          "every chain is served exactly once by \($0.rawValue)",
          "every message and every answer has the right bytes by \($0.rawValue)",
          "who is denied tries again, and loses nothing, by \($0.rawValue)",
        ]
      } + [
        "each kind of garbage is refused by its name, and the chain before it is served",
        "every random ring is served or refused", "the device touches nothing outside the region",
      ])
    // Every violation that a driver can commit in a small region.
    #expect(result.measurements.filter { $0.subject == "random rings" }.count == 7)
  }

  @Test("Plain output has no escape codes, and the pictures")
  func drawsPlainly() throws {
    let (code, output, _) = try pinctl(["demo", "vring", "--seconds", "0.3", "--rounds", "200"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    for kind in VringGarbage.kinds { #expect(shown.contains("\n  \(kind.name) "), "\(kind.name)") }
    #expect(shown.contains("descriptor 1 is indirect") && shown.contains("▪"))
  }

  @Test("Numbers that make no sense are refused, code 64") func refuses() throws {
    for arguments in [["--seconds", "0"], ["--seconds", "41"], ["--rounds", "0"], ["--rounds", "some"]] {
      #expect(try pinctl(["demo", "vring"] + arguments).code == 64)
    }
  }
}

@Suite("What the vring demo claims") struct VringJudgeTests {
  private func failing(_ claims: [Claim]) -> [Int] { claims.indices.filter { !claims[$0].holds } }

  private static var exchange: VringExchange.Outcome {
    .init(
      posted: 5, servedOnce: 5, completed: 5, wrong: 0,
      unrest: .init(clones: 1, snapshots: 1, collections: 1, discards: 1, protections: 1), denied: 1, seconds: 1)
  }

  private static var garbage: VringGarbage.Outcome {
    let kind = VringGarbage.kinds[2]
    return .init(
      cases: [.init(kind: kind, answer: .headOutOfRange(16), used: 1)], rounds: 3, good: 1, refused: ["indirect": 2],
      guardBytes: 4096)
  }

  @Test("A chain that was lost, served twice or changed is found") func exchanges() {
    #expect(failing(VringClaims.judge(Self.exchange)) == [])
    for (change, claims) in [
      ({ $0.servedOnce = 4 }, [0]), ({ $0.completed = 4 }, [0, 2]), ({ $0.wrong = 1 }, [1]), ({ $0.denied = 0 }, [2]),
      ({ $0.unrest.clones = 0 }, [2]), ({ $0.failures = ["no"] }, [0]),
      (
        {
          $0.posted = 0
          $0.servedOnce = 0
          $0.completed = 0
        }, [0, 1]
      ),
    ] as [((inout VringExchange.Outcome) -> Void, [Int])] {
      var outcome = Self.exchange
      change(&outcome)
      #expect(failing(VringClaims.judge(outcome)) == claims)
    }
  }

  @Test("Garbage that was accepted, or taken for another, is found") func garbage() {
    #expect(failing(VringClaims.judge(Self.garbage)) == [])
    for (change, claim) in [
      ({ $0.cases[0].answer = nil }, 0), ({ $0.cases[0].answer = .indirect(descriptor: 1) }, 0),
      ({ $0.cases[0].used = 2 }, 0),
      ({ $0.cases = [] }, 0), ({ $0.good = 0 }, 1), ({ $0.strange = ["out of bounds"] }, 1), ({ $0.changedGuards = 1 }, 2),
    ] as [((inout VringGarbage.Outcome) -> Void, Int)] {
      var outcome = Self.garbage
      change(&outcome)
      #expect(failing(VringClaims.judge(outcome)) == [claim])
    }
  }

  @Test("A message that changed has no number") func messages() {
    let message = VringMessage.make(77)
    #expect(VringMessage.number(message) == 77)
    for place in message.indices {
      var other = message
      other[place] ^= 1
      #expect(VringMessage.number(other) == nil)
    }
    #expect(VringMessage.answer(to: 77) != message && VringMessage.number([]) == nil)
  }
}
