internal import Terminal
internal import Virtqueue

/// What the two scenes say.
enum VringClaims {
  static func judge(_ outcome: VringExchange.Outcome, _ way: VringExchange.Way = .checked) -> [Claim] {
    let unrest = outcome.unrest
    let failures = outcome.failures.isEmpty ? "" : " " + outcome.failures.joined(separator: "; ")
    let happened = [unrest.clones, unrest.snapshots, unrest.collections, unrest.discards, unrest.protections]
    return [
      Claim(
        contract: "W5", claim: "every chain is served exactly once by \(way.rawValue)",
        holds: outcome.posted > 0 && outcome.servedOnce == outcome.posted && outcome.completed == outcome.posted
          && outcome.failures.isEmpty,
        evidence:
          "\(outcome.posted.grouped) chains of four descriptors were posted, \(outcome.servedOnce.grouped) served once, "
          + "\(outcome.completed.grouped) came back.\(failures)"),
      Claim(
        contract: "W5", claim: "every message and every answer has the right bytes by \(way.rawValue)",
        holds: outcome.completed > 0 && outcome.wrong == 0,
        evidence: "\(outcome.wrong.grouped) of \((2 * outcome.completed).grouped) were wrong."),
      Claim(
        contract: "W1", claim: "who is denied tries again, and loses nothing, by \(way.rawValue)",
        holds: outcome.denied > 0 && happened.allSatisfy { $0 > 0 } && outcome.completed == outcome.posted,
        evidence:
          "\(outcome.denied.grouped) accesses were denied while rights were taken away \(unrest.protections.grouped) times."),
    ]
  }

  static func judge(_ outcome: VringGarbage.Outcome) -> [Claim] {
    let missed = outcome.cases.filter { !$0.isRefused }
    let refused = outcome.refused.values.reduce(0, +)
    let first = missed.first.map { " \($0.kind.name): \($0.answer?.description ?? "no error")." } ?? ""
    return [
      Claim(
        contract: "virtio", claim: "each kind of garbage is refused by its name, and the chain before it is served",
        holds: !outcome.cases.isEmpty && missed.isEmpty,
        evidence: "\(outcome.cases.count - missed.count) of \(outcome.cases.count) kinds were.\(first)"),
      Claim(
        contract: "virtio", claim: "every random ring is served or refused",
        holds: outcome.rounds > 0 && outcome.good + refused == outcome.rounds && outcome.strange.isEmpty,
        evidence:
          "Of \(outcome.rounds.grouped) rings \(outcome.good.grouped) were served to the end and \(refused.grouped) refused."
          + (outcome.strange.first.map { " Another ended with: \($0)" } ?? "")),
      Claim(
        contract: "virtio", claim: "the device touches nothing outside the region",
        holds: outcome.guardBytes > 0 && outcome.changedGuards == 0,
        evidence: "\(outcome.changedGuards.grouped) of \(outcome.guardBytes.grouped) bytes on both sides of it changed."),
    ]
  }

  static func measurements(
    _ outcome: VringExchange.Outcome, _ way: VringExchange.Way = .checked
  ) -> [DemoResult.Measurement] {
    let rate = outcome.seconds > 0 ? Double(outcome.completed) / outcome.seconds : 0
    return [
      .init(subject: "exchange by \(way.rawValue)", name: "chains", value: Double(outcome.completed), unit: "chains"),
      .init(subject: "exchange by \(way.rawValue)", name: "rate", value: rate, unit: "chains/s"),
      .init(
        subject: "exchange by \(way.rawValue)", name: "denied accesses", value: Double(outcome.denied), unit: "accesses"),
    ]
  }

  static func measurements(_ outcome: VringGarbage.Outcome) -> [DemoResult.Measurement] {
    outcome.refused.sorted { $0.key < $1.key }.map {
      .init(subject: "random rings", name: $0.key, value: Double($0.value), unit: "rings")
    }
  }
}

extension VringGarbage.Case {
  /// The device named what is wrong, and served what came before.
  var isRefused: Bool { answer.map(VringGarbage.name) == kind.violation && used == kind.served }
}
