internal import ArgumentParser
internal import Demos

/// `pinctl demo file`.
struct FileCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "file",
    abstract: "Maps a file through PinKit, and shows how its pages come, change, are written and go.",
    discussion: """
      Six scenes: pages that come in when they are touched; the order in which one becomes writable and clean; a store that is \
      slow, and one that fails; a file system without room (a small ext4 on a loop device, as root; otherwise a store that says so); \
      pages that are dropped while a secondary MMU uses some; and processes that are killed while they write and flush.

      The exit code is 0 if every claim holds or nothing could be shown, 1 if one does not hold, and 64 if the input makes no \
      sense.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: "How many processes are killed in the last scene.")
  var kills = 12

  func validate() throws {
    guard (1...1000).contains(kills) else { throw ValidationError("--kills must be between 1 and 1000.") }
  }

  func run() throws { try DemoCommand.perform(FileDemo(kills: kills), json: json) }
}
