internal import Foundation
internal import Glibc

/// The standard output, with colours where there is somebody to see them.
package struct Screen: Sendable {
  package enum Colours: Sendable {
    case none
    case palette256
    case full
  }

  package let colours: Colours
  /// In characters.
  package let width: Int
  private let isSilent: Bool

  /// - Parameter isSilent: Nothing is printed: the result is wanted as JSON.
  package init(isSilent: Bool = false) {
    let environment = ProcessInfo.processInfo.environment
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
  package init(colours: Colours, width: Int) {
    self.colours = colours
    self.width = width
    isSilent = true
  }

  /// Prints a paragraph, broken between words.
  package func say(_ text: String, indent: Int = 0) {
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
  package func show(_ line: String = "") {
    guard !isSilent else { return }
    // Not print(_:), which keeps lines back when they go into a pipe.
    Output.line(line)
  }

  /// Prints a picture, between two empty lines.
  package func draw(_ lines: [String], indent: Int = 0) {
    show()
    for line in lines { show(String(repeating: " ", count: indent) + line) }
    show()
  }

  package func title(_ text: String) {
    show()
    show(bold("── \(text) " + String(repeating: "─", count: max(0, width - text.count - 4))))
  }

  package func bold(_ text: String) -> String { paint(text, 1) }

  /// With an SGR code, where there are colours.
  package func paint(_ text: String, _ code: Int) -> String {
    colours == .none ? text : "\u{1b}[\(code)m\(text)\u{1b}[0m"
  }
}
