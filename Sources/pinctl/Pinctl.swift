internal import ArgumentParser
internal import Glibc
internal import Terminal

@main
struct Pinctl: ParsableCommand {
  /// Of PinKit, and here alone: the release that is being made, or `-dev` behind the one that will be.
  static let version = "0.1.0-dev"

  static let configuration = CommandConfiguration(
    commandName: "pinctl",
    abstract: "Shows, measures and checks what PinKit does on this machine.",
    version: version,
    subcommands: [Doctor.self, Inspect.self, ImageCommand.self, DemoCommand.self, Bench.self])

  /// Runs the command, and fails if its output did not arrive, whatever else came of it.
  static func main() {
    var outcome: (any Error)?
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch {
      outcome = error
    }
    if let error = outcome, exitCode(for: error) == .success {
      // Help, or a success that a command has thrown.
      let text = fullMessage(for: error)
      if !text.isEmpty { Output.line(text) }
      outcome = nil
    }
    do throws(Output.Failure) { try Output.check() } catch {
      Output.note("Error: \(error)")
      Glibc.exit(1)
    }
    if let outcome { exit(withError: outcome) }
  }
}
