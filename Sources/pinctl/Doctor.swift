internal import ArgumentParser
internal import PinKit
internal import Reports
internal import Terminal

/// `pinctl doctor`: what PinKit can do here, why not more, and what to type.
struct Doctor: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Shows what this kernel, this user and this container let PinKit do, and the settings that allow more.",
    discussion: "Exits with 0 if PinKit can run here at all, by mprotect at least, and with 1 otherwise.")

  @Flag(help: "Print one JSON object: the capabilities, the verdicts and the fixes.")
  var json = false

  func run() throws {
    let report = DoctorReport(Capabilities.probe())
    Output.line(json ? try report.json() : report.text())
    guard report.canRun else { throw ExitCode(1) }
  }
}
