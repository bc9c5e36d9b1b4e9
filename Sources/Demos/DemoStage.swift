package import PinKit
package import Terminal

/// Where a demo tells its story, and on which machine.
package struct DemoStage: Sendable {
  let screen: Screen
  /// What can be shown here, as it was before anything was shown.
  let machine: Capabilities

  /// - Parameter isSilent: Nothing is printed: the result is wanted as JSON.
  package init(isSilent: Bool = false) {
    machine = .probe()
    screen = Screen(isSilent: isSilent)
  }

  /// For tests: prints nothing.
  package init(colours: Screen.Colours, width: Int, machine: Capabilities = .probe()) {
    self.machine = machine
    screen = Screen(colours: colours, width: width)
  }

  /// Prints claims; `subject: ` in front of them is left out.
  func show(_ claims: [Claim], about subject: String = "") {
    for claim in claims {
      let prefix = subject + ": "
      let text = claim.claim.hasPrefix(prefix) ? String(claim.claim.dropFirst(prefix.count)) : claim.claim
      show("  \(mark(claim))  \(claim.contract)  \(text)")
      say(claim.evidence, indent: 15)
    }
  }

  /// Prints claims without what was counted.
  func list(_ claims: [Claim]) {
    for claim in claims { show("  \(mark(claim))  \(claim.contract)  \(claim.claim)") }
  }

  private func mark(_ claim: Claim) -> String { claim.holds ? paint("✓ holds", 32) : paint("✗ FAILS", 31) }

  /// Says what all came to, and what did not hold.
  func conclude(_ result: DemoResult) {
    show()
    let failing = result.claims.filter { !$0.holds }
    let skipped = result.skipped.isEmpty ? "" : " Skipped: \(result.skipped.map(\.subject).joined(separator: ", "))."
    if result.claims.isEmpty, !result.skipped.isEmpty { return say(bold("Nothing could be shown.") + skipped) }
    guard failing.isEmpty else {
      say(bold("\(failing.count) of \(result.claims.count) claims do not hold.") + skipped)
      show(failing)
      return
    }
    say(bold("All \(result.claims.count) claims hold.") + skipped)
  }
}

/// What its screen can do.
extension DemoStage {
  var colours: Screen.Colours { screen.colours }
  var width: Int { screen.width }
  func say(_ text: String, indent: Int = 0) { screen.say(text, indent: indent) }
  func show(_ line: String = "") { screen.show(line) }
  func draw(_ lines: [String], indent: Int = 0) { screen.draw(lines, indent: indent) }
  func title(_ text: String) { screen.title(text) }
  func bold(_ text: String) -> String { screen.bold(text) }
  func paint(_ text: String, _ code: Int) -> String { screen.paint(text, code) }
}
