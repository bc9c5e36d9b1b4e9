internal import ArgumentParser
internal import Demos

/// `pinctl demo beside`.
struct BesideCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "beside",
    abstract: "What other code in the process, the kernel and an operator do to memory that is managed.",
    discussion: """
      Each scene runs in a child process, which may die without taking the demo with it: the kernel moves pages while snapshots are read; \
      a loop closes descriptors that are not its own; the process is stopped and goes on; it locks itself into an empty directory; it locks its \
      memory; pages turn into guards, and a file is cut short; a driver registers pages; a device writes while pages are protected.

      The exit code is 0 if every claim holds or nothing could be shown, 1 if one does not hold, and 64 if the input makes no \
      sense. Colours need a terminal, and NO_COLOR turns them off.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: .hidden)
  var scene: String?

  func validate() throws {
    guard let scene, !BesideDemo.sceneNames.contains(scene) else { return }
    throw ValidationError("There is no scene \(scene).")
  }

  func run() throws {
    guard let scene else { return try DemoCommand.perform(BesideDemo(), json: json) }
    try BesideDemo.playInChild(scene)
  }
}
