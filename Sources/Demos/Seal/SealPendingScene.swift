internal import PinKit
internal import Terminal

/// Who has been promised an accessible page has one until he lets go.
struct SealPendingScene: DemoScene {
  let title = "pages that somebody uses cannot be sealed"
  let needs: [DemoNeed] = [.seals]

  struct Attempt {
    var user: String
    var code: PinError.Code?
    /// Pages of the range that are sealed after it, or have other bytes.
    var changed = 0
    /// Once the user was gone.
    var sealsLater = false
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "Somebody uses page 3 of 8 while all of them are to be sealed. All or none are; then the user lets go, and it is tried again."
    )
    stage.show()
    var attempts: [Attempt] = []
    var findings = DemoFindings()
    attempts.append(
      try Self.attempt("a pin") { region, body in
        let pin = try region.pin(3..<4)
        body()
        pin.unpin()
      })
    attempts.append(
      try Self.attempt("a lookup") { region, body in
        let reference = try region.lookUp(3)
        body()
        _ = consume reference
      })
    findings.attempt("fixed buffers", needing: [.fixedBuffers], on: stage) { _ in
      attempts.append(
        try Self.attempt("fixed buffers") { region, body in
          let buffers = try FixedBuffers(region, [3..<4])
          body()
          try buffers.close()
        })
    }
    attempts.append(
      try Self.attempt("a clone") { region, body in
        let clone = try region.clone()
        body()
        try clone.unmap()
      })
    for attempt in attempts {
      stage.show(
        "  \(attempt.user.padded(to: 14)) \((attempt.code.map { "\($0)" } ?? "sealed").padded(to: 8)) then \(attempt.sealsLater ? "sealed" : "not sealed")"
      )
    }
    stage.show()
    let claims = Self.judge(attempts)
    stage.show(claims)
    findings.claims += claims
    return findings
  }

  static func judge(_ attempts: [Attempt]) -> [Claim] {
    let refused = attempts.count { $0.code == .busy && $0.changed == 0 }
    let later = attempts.count { $0.sealsLater }
    return [
      Claim(
        contract: "S2", claim: "sealing a page that is pending is busy, and changes nothing",
        holds: !attempts.isEmpty && refused == attempts.count,
        evidence: "\(refused) of \(attempts.count) attempts were refused and left every page as it was."),
      Claim(
        contract: "S1", claim: "once it is not pending any more, it is sealed",
        holds: !attempts.isEmpty && later == attempts.count, evidence: "\(later) of \(attempts.count) were."),
    ]
  }

  private static func attempt(
    _ user: String, _ use: (Region, () -> Void) throws -> Void
  ) throws -> Attempt {
    let store = try SealKeyStore(SealNeedles(count: 7), SealingOptions())
    defer { try? store.space.close() }
    let region = store.region
    var attempt = Attempt(user: user)
    try use(region) {
      do throws(PinError) { try region.seal(store.pages) } catch { attempt.code = error.code }
      attempt.changed = store.pages.count { page in
        (try? region.isSealed(page)) != false || (try? store.isWhole(page)) != true
      }
    }
    try region.seal(store.pages)
    attempt.sealsLater = try !store.sealed.contains(false)
    return attempt
  }
}
