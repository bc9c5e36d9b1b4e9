internal import ArgumentParser
internal import Demos

/// `pinctl demo cow`.
struct CowCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cow",
    abstract: "Shares frames between clones, attacks every reuse policy, and draws who has which frame.",
    discussion: """
      Five scenes: the leak through a pin that outlives its mapping, under each policy; the same attack on the running \
      kernel; the needless copy that a lookup causes; the pin of a device that must stay with its owner; and a template \
      cloned many times, with every count compared with the kernel's where /proc/kpagecount can be read (as root).

      The exit code is 0 if every claim holds, 1 if one does not, and 64 if the input makes no sense. Colours need a \
      terminal, and NO_COLOR turns them off.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: "How often the template of the last scene is cloned.")
  var clones = 24

  func validate() throws {
    guard (1...100).contains(clones) else { throw ValidationError("--clones must be between 1 and 100.") }
  }

  func run() throws {
    try DemoCommand.perform(CowDemo(clones: clones), json: json)
  }
}
