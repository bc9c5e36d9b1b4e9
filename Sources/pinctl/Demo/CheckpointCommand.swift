internal import ArgumentParser
internal import Demos

/// `pinctl demo checkpoint`, and `pinctl demo` without more.
struct CheckpointCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "checkpoint",
    abstract:
      "Tracks a live heap and saves it without fork(), in less than a minute: `pinctl demo` without a subcommand.",
    discussion: """
      Threads build a word index in memory while another collects the pages that they write, by the cheapest mechanism there is here. Then \
      threads change a table without a pause while a snapshot of it goes to an image, and another with what changed since. Every page is \
      compared with what it must be. `pinctl demo track` and `pinctl demo snapshot` show each half in full.

      The exit code is 0 if every claim holds or nothing could be shown, 1 if one does not hold, and 64 if the input makes no sense.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: "How long the writers of each half go on at least.")
  var seconds = 1.5

  @Option(help: ArgumentHelp("The size of the table that is saved.", valueName: "MiB"))
  var size = 64

  func validate() throws {
    guard (0.1...60).contains(seconds) else { throw ValidationError("--seconds must be between 0.1 and 60.") }
    guard (1...65_536).contains(size) else { throw ValidationError("--size must be between 1 and 65536.") }
  }

  func run() throws { try DemoCommand.perform(CheckpointDemo(seconds: seconds, size: size), json: json) }
}
