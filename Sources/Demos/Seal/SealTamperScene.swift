internal import Glibc
internal import PinKit

/// A page whose sealed bytes were changed.
struct SealTamperScene: DemoScene {
  let title = "a page that was tampered with"
  let needs: [DemoNeed] = [.seals]

  struct Outcome {
    var answer: String?
    var again: String?
    var signal: Int32?
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A child seals its keys, and one bit of one sealed page is changed. It asks for the page twice, putting the bit back in between, and touches it."
    )
    let victim = try SealVictimProcess(SealNeedles(count: 9))
    guard victim.ask("seal") == "sealed 8" else { throw SealReaderScene.Fault(description: "the child sealed nothing") }
    var outcome = Outcome()
    outcome.answer = victim.ask("tamper")
    outcome.again = victim.ask("tamper")
    outcome.signal = victim.end(by: "touch")
    stage.show()
    return DemoFindings(showing: Self.judge(outcome), on: stage)
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "S5", claim: "a page whose sealed bytes were changed never opens",
        holds: outcome.answer == "\(PinError.Code.tampered)" && outcome.again == "\(PinError.Code.tampered)",
        evidence: "The child was told: \(outcome.answer ?? "nothing"), then: \(outcome.again ?? "nothing")."),
      Claim(
        contract: "S5", claim: "whoever touches it gets SIGBUS", holds: outcome.signal == SIGBUS,
        evidence: outcome.signal.map { "The child died by signal \($0)." } ?? "The child read it, and lives."),
    ]
  }
}
