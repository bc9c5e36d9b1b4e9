internal import ArgumentParser
internal import Demos

/// `pinctl demo file-writer`: what the last scene of `pinctl demo file` kills. Not for people.
struct FileWriterCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "file-writer",
    abstract: "Writes a file through PinKit and flushes it, round after round, until it is killed.", shouldDisplay: false)

  @Argument(help: "The file; it is there.")
  var path: String

  func run() throws { try FileWriter.run(path) }
}
