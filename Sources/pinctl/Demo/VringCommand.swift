internal import ArgumentParser
internal import Demos

/// `pinctl demo vring`.
struct VringCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vring",
    abstract:
      "Runs a virtqueue in memory that is cloned, snapshotted, protected and discarded meanwhile, and feeds it garbage.",
    discussion: """
      Two scenes: a driver and a device that exchange checksummed buffers while other threads change the region under them; \
      and a driver that breaks the protocol in every way there is, then at random, between two guards of known content.

      The exit code is 0 if every claim holds, 1 if one does not, and 64 if the input makes no sense. Colours need a \
      terminal, and NO_COLOR turns them off.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: "How long driver and device exchange buffers, in seconds.")
  var seconds = 3.0

  @Option(help: "How many rings are filled at random.")
  var rounds = 20_000

  func validate() throws {
    guard seconds > 0, seconds <= 40 else { throw ValidationError("--seconds must be above 0 and at most 40.") }
    guard (1...1_000_000).contains(rounds) else { throw ValidationError("--rounds must be between 1 and 1000000.") }
  }

  func run() throws {
    try DemoCommand.perform(VringDemo(seconds: seconds, rounds: rounds), json: json)
  }
}
