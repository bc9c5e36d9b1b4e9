internal import ArgumentParser
internal import Demos

/// `pinctl demo notify`.
struct NotifyCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "notify",
    abstract: "Draws a change of frame as its subscribers saw it, and checks who was told, when and how often.",
    discussion: """
      Three scenes: a page breaks away from its clone while two subscribers are told, one of which refuses at first, and a \
      secondary MMU reads the page all the time; a window onto a few pages goes down for a collection and comes up again; \
      and subscribers are removed, from inside a callback and beside one, until the memory goes.

      The times are those of this run. The exit code is 0 if every claim holds, 1 if one does not, and 64 if the input makes \
      no sense.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: "How often a page breaks away, by each mechanism.")
  var breaks = 40

  func validate() throws {
    guard (1...10_000).contains(breaks) else { throw ValidationError("--breaks must be between 1 and 10000.") }
  }

  func run() throws { try DemoCommand.perform(NotifyDemo(breaks: breaks), json: json) }
}
