internal import Foundation
internal import Glibc
internal import PinKit

/// Where a demo tells its story: the standard output, with colours where there is somebody to see them. And on which machine.
struct DemoStage: Sendable {
  enum Colours: Sendable {
    case none
    case palette256
    case full
  }

  let colours: Colours
  /// In characters.
  let width: Int
  /// What can be shown here, as it was before anything was shown.
  let machine: Capabilities
  private let isSilent: Bool

  /// - Parameter isSilent: Nothing is printed: the result is wanted as JSON.
  init(isSilent: Bool = false) {
    let environment = ProcessInfo.processInfo.environment
    machine = .probe()
    self.isSilent = isSilent
    let isTerminal = isatty(STDOUT_FILENO) == 1 && environment["TERM"] != "dumb"
    let refused = !(environment["NO_COLOR"] ?? "").isEmpty
    let isFull = ["truecolor", "24bit"].contains(environment["COLORTERM"] ?? "")
    colours = !isTerminal || refused ? .none : isFull ? .full : .palette256
    var size = winsize()
    let answer = isTerminal ? unsafe ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) : -1
    width = min(120, max(60, answer == 0 && size.ws_col > 0 ? Int(size.ws_col) : 100))
  }

  /// For tests: prints nothing.
  init(colours: Colours, width: Int, machine: Capabilities = .probe()) {
    self.machine = machine
    self.colours = colours
    self.width = width
    isSilent = true
  }

  /// Prints a paragraph, broken between words.
  func say(_ text: String, indent: Int = 0) {
    let margin = String(repeating: " ", count: indent)
    var line = margin
    for word in text.split(separator: " ") {
      if line.count > indent, line.count + 1 + word.count > width {
        show(line)
        line = margin
      }
      line += (line.count > indent ? " " : "") + word
    }
    show(line)
  }

  /// Prints a line as it is.
  func show(_ line: String = "") {
    guard !isSilent else { return }
    // Not print(_:), which keeps lines back when they go into a pipe.
    Output.line(line)
  }

  /// Prints a picture, between two empty lines.
  func draw(_ lines: [String], indent: Int = 0) {
    show()
    for line in lines { show(String(repeating: " ", count: indent) + line) }
    show()
  }

  func title(_ text: String) {
    show()
    show(bold("── \(text) " + String(repeating: "─", count: max(0, width - text.count - 4))))
  }

  /// Prints claims; `subject: ` in front of them is left out.
  func show(_ claims: [Claim], about subject: String = "") {
    for claim in claims {
      let prefix = subject + ": "
      let text = claim.claim.hasPrefix(prefix) ? String(claim.claim.dropFirst(prefix.count)) : claim.claim
      let mark = claim.holds ? paint("✓ holds", 32) : paint("✗ FAILS", 31)
      show("  \(mark)  \(claim.contract)  \(text)")
      say(claim.evidence, indent: 15)
    }
  }

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

  func bold(_ text: String) -> String { paint(text, 1) }

  /// With an SGR code, where there are colours.
  func paint(_ text: String, _ code: Int) -> String {
    colours == .none ? text : "\u{1b}[\(code)m\(text)\u{1b}[0m"
  }
}

extension FixedWidthInteger {
  /// With commas between thousands: `1,234`.
  var grouped: String {
    var digits = Array(String(magnitude))
    var at = digits.count - 3
    while at > 0 {
      digits.insert(",", at: at)
      at -= 3
    }
    return (self < 0 ? "-" : "") + String(digits)
  }
}

/// `1 page`, `1,234 pages`.
func counted(_ count: Int, _ name: String) -> String { "\(count.grouped) \(name)\(count == 1 ? "" : "s")" }

extension Double {
  /// With so many digits behind the point.
  func rounded(to digits: Int) -> String { String(format: "%.\(digits)f", self) }
}

extension String {
  func padded(to width: Int) -> String { self + String(repeating: " ", count: Swift.max(0, width - count)) }
  func aligned(to width: Int) -> String { String(repeating: " ", count: Swift.max(0, width - count)) + self }
}
