internal import PinKit
internal import Terminal

/// The leak (W3): share a page, pin it in the child, unmap it in the child, write a secret in the parent, read it through the pin.
struct CowLeakScene: DemoScene {
  let title = "a secret behind a pin"

  /// A policy, and what the attack should come to.
  static let cases: [(policy: ReusePolicy, leaks: Bool, story: String)] = [
    (
      .unsafeBareMapcount, true,
      "reuse the frame if this is its only mapping. After the child has unmapped it is, so the parent writes in place, into the frame "
        + "that the pin still holds. The rule has to be asked for by a name that says so."
    ),
    (
      .mapcount, false,
      "the same rule, but a pin of a shared frame first gives the pinner a frame of its own. The pin outlives the mapping as before, "
        + "on a frame that the parent never had."
    ),
    (
      .refcount, false,
      "reuse the frame if nobody else has a reference. The pin is one, so the parent copies."
    ),
    (
      .exclusive, false,
      "reuse the frame if it is marked as this mapping's alone, or has no other reference now. Sharing takes the mark away, and pins "
        + "break sharing first. The default."
    ),
  ]

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A child shares its parent's page, pins it for reading, and unmaps it. Then the parent writes a secret. Can the child read it "
        + "through its pin? (CVE-2020-29374.) " + CowLedger.legend)
    var found = DemoFindings()
    for (policy, leaks, story) in Self.cases {
      stage.show()
      stage.say(stage.bold(policy.description) + ": " + story)
      let one = try CowLeak.attack(policy)
      stage.draw(one.ledger.lines(stage))
      let many = try CowLeak.attackMany(policy)
      let claims = Self.judge(policy, shouldLeak: leaks, one, many)
      stage.show(claims, about: policy.description)
      found.claims += claims
      found.measurements.append(
        .init(subject: policy.description, name: "pages leaked", value: Double(many.leaked), unit: "pages"))
    }
    return found
  }

  /// What the two attacks say of a policy.
  static func judge(
    _ policy: ReusePolicy, shouldLeak: Bool, _ one: CowLeak.Outcome, _ many: CowLeak.Total
  ) -> [Claim] {
    let leaked = one.seen == one.secret
    let kept = one.seen == one.before
    let counts =
      "of \(many.attacked) more pages that were attacked at once \(many.leaked) leaked, \(many.kept) showed the old bytes."
    let evidence =
      "Through the pin the child reads \(quoted(one.seen)), where the parent wrote \(quoted(one.secret)) over \(quoted(one.before)); "
      + counts
    let didWhatItSays = one.decided == (one.isSameFrame ? .reuse : .copy)
    return [
      shouldLeak
        ? Claim(
          contract: "W3", claim: "\(policy): the leak can be reproduced",
          holds: leaked && many.attacked > 0 && many.leaked == many.attacked, evidence: evidence)
        : Claim(
          contract: "W3", claim: "\(policy): nothing leaks",
          holds: kept && many.attacked > 0 && many.kept == many.attacked, evidence: evidence),
      Claim(
        contract: "W2", claim: "\(policy): the parent's write does what the rule says, and is not lost",
        holds: didWhatItSays && one.parentReads == one.secret && many.lost == 0,
        evidence:
          "The rule said \(one.decided) of \(counted(one.countsBefore.references, "reference")) and "
          + "\(counted(one.countsBefore.mappings, "mapping")); the page \(one.isSameFrame ? "kept its frame" : "got another frame") "
          + "and holds \(quoted(one.parentReads)). \(many.lost) of \(many.attacked) writes were lost."),
    ]
  }
}

func quoted(_ text: String) -> String { "\"\(text)\"" }
