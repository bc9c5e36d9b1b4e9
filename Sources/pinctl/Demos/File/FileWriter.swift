internal import ArgumentParser
internal import Glibc
internal import PinKit

/// `pinctl demo file-writer`: what the last scene of `pinctl demo file` kills. Not for people.
struct FileWriterCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "file-writer",
    abstract: "Writes a file through PinKit and flushes it, round after round, until it is killed.", shouldDisplay: false)

  @Argument(help: "The file; it is there.")
  var path: String

  func run() throws { try FileWriter.run(path) }
}

enum FileWriter {
  /// Once all pages of a round were flushed its number, in 8 bytes, on the standard output.
  static func run(_ path: String) throws {
    let store = try FileStore(path: path)
    let space = try DemoSpace.make()
    let region = try space.map(.file(store), pages: store.geometry.pageCount)
    var round = try FileContent.rounds(of: region).compactMap { $0 }.max() ?? 0
    while true {
      round += 1
      // In two parts, in no order: what is written back are runs, holes and single pages.
      let order = (0..<region.pageCount).shuffled()
      let middle = Int.random(in: 1..<order.count)
      for part in [order[..<middle], order[middle...]] {
        for page in part { try FileContent.write(round, page, to: region) }
        try region.flush()
      }
      var number = UInt64(round)
      guard unsafe write(STDOUT_FILENO, &number, 8) == 8 else { return }
    }
  }
}
