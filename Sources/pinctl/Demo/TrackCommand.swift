internal import ArgumentParser
internal import Demos
internal import PinKit

/// `pinctl demo track`.
struct TrackCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "track",
    abstract: "Indexes text inside tracked memory, draws which pages get dirty, and checks that no write is missed.",
    discussion: """
      Several threads build a word index inside a tracked region while another collects the dirty pages every few \
      milliseconds. Each collection is compared with a log of every store, with a shadow copy of the memory, byte for byte, \
      and with what the kernel says. Each mechanism gets its turn; one that this machine cannot do is skipped, with the \
      reason.

      Without files it indexes the licence texts under \(TrackCorpus.defaultDirectory). The exit code is 0 if every claim \
      holds, 1 if one does not, and 64 if the input makes no sense. Colours need a terminal, and NO_COLOR turns them off.
      """)

  @Argument(help: "Text files to index, together at most \(TrackCorpus.largestSize >> 20) MiB.", completion: .file())
  var files: [String] = []

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(
    help: "Only this way of noticing writes: \(WriteTracking.Mechanism.names).",
    completion: .list(WriteTracking.Mechanism.allCases.map(\.rawValue)), transform: Self.mechanism)
  var mechanism: WriteTracking.Mechanism?

  @Option(help: "How long each mechanism runs; a round of indexing is always finished, and there are two at least.")
  var seconds = 2.5

  func validate() throws {
    guard (0.1...60).contains(seconds) else { throw ValidationError("--seconds must be between 0.1 and 60.") }
  }

  func run() throws {
    var demo = TrackDemo()
    demo.files = files
    demo.seconds = seconds
    if let mechanism { demo.mechanisms = [mechanism] }
    do {
      try DemoCommand.perform(demo, json: json)
    } catch let problem as TrackCorpus.Problem {
      throw ValidationError(problem.description)
    }
  }

  private static func mechanism(_ name: String) throws -> WriteTracking.Mechanism {
    guard let found = WriteTracking.Mechanism(rawValue: name) else {
      throw ValidationError("There is no mechanism '\(name)'; there are \(WriteTracking.Mechanism.names).")
    }
    return found
  }
}

extension WriteTracking.Mechanism {
  fileprivate static var names: String { allCases.map(\.rawValue).joined(separator: ", ") }
}
