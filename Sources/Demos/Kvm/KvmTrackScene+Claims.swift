internal import PinKit
internal import Terminal

extension KvmTrackScene {
  static func judge(_ outcome: Outcome) -> [Claim] {
    let name = "guest, \(outcome.mechanism.rawValue)"
    let differing = outcome.sets.indices.filter { outcome.sets[$0].collected.runs != outcome.sets[$0].written.runs }
    let pages = outcome.sets.reduce(0) { $0 + $1.written.count }
    let first = differing.first.map { round in
      let (collected, written) = outcome.sets[round]
      return
        " First in round \(round + 1): \(written.subtracting(collected).count) missed, \(collected.subtracting(written).count) not written."
    }
    var claims = [
      Claim(
        contract: "N6", claim: "\(name): every set is exactly what the guest wrote",
        holds: pages > 0 && differing.isEmpty && outcome.wrong == 0,
        evidence:
          "\(differing.count) of \(outcome.sets.count) sets differ, \(pages.grouped) pages in all; \(outcome.wrong) pages hold something else."
          + (first ?? ""))
    ]
    if let renewed = outcome.renewed {
      claims.append(
        Claim(
          contract: "N6", claim: "\(name): a collection takes the guest's translations away, and only that",
          holds: renewed.collected >= renewed.pages && renewed.kept < renewed.pages / 10,
          evidence:
            "Of \(renewed.pages.grouped) pages, KVM made \(renewed.collected.grouped) translations anew after a collection, "
            + "and \(renewed.kept.grouped) when they were written without one (the median of 15 passes)."))
    }
    let isRefused = [.inPlace, .mprotect].contains(outcome.mechanism)
    claims.append(
      Claim(
        contract: "N1",
        claim: isRefused
          ? "\(name): KVM was refused each page once, and the fault taken before it got the page"
          : "\(name): the kernel takes the faults for the guest",
        holds: isRefused ? outcome.refusals == pages && pages > 0 : outcome.refusals == 0,
        evidence: "KVM_RUN failed with EFAULT \(outcome.refusals.grouped) times."))
    return claims
  }

  static func measure(_ outcome: Outcome) -> [DemoResult.Measurement] {
    let subject = "guest, \(outcome.mechanism.rawValue)"
    let pages = outcome.sets.reduce(0) { $0 + $1.collected.count }
    return [
      .init(subject: subject, name: "collect", value: outcome.collectTime / 1e3, unit: "µs"),
      .init(
        subject: subject, name: "dirty", value: Double(pages) / Double(max(1, outcome.sets.count)), unit: "pages a round"),
    ]
  }
}
