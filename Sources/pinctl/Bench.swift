internal import ArgumentParser
internal import Foundation
internal import Logging
internal import Terminal
internal import Topics

struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Measures PinKit beside the raw kernel, in one run.",
    discussion: """
      Every row is measured twice: with PinKit, and with a plain C loop that does the same work without it. The sides take turns, \
      so that the ratio holds where the absolute figures drift. Measure a release build on an idle machine.
      """)

  @Argument(
    help: "What to measure: \(BenchTopics.all.map { $0.name }.joined(separator: ", ")). All if none is named.",
    completion: .list(BenchTopics.all.map { $0.name }))
  var topics: [String] = []

  @Option(help: "Only rows whose name contains this.")
  var only: String?

  @Option(help: "Rounds of each side; medians are reported.")
  var rounds = 7

  @Flag(help: "A sixteenth of the memory.")
  var quick = false

  @Flag(help: "Print JSON.")
  var json = false

  func validate() throws {
    guard rounds > 0 else { throw ValidationError("--rounds needs at least 1.") }
    for topic in topics where !BenchTopics.all.contains(where: { $0.name == topic }) {
      throw ValidationError("There is no topic \"\(topic)\".")
    }
  }

  /// Measuring nothing is no success.
  private func checkSelection() throws {
    guard let only else { return }
    let chosen = BenchTopics.all.filter { topics.isEmpty || topics.contains($0.name) }
    if chosen.contains(where: { $0.rows.contains { $0.name.contains(only) } }) { return }
    Output.note("No row has \"\(only)\" in its name. There are:")
    for topic in chosen { Output.note("  \(topic.name): \(topic.rows.map(\.name).joined(separator: ", "))") }
    throw ExitCode.failure
  }

  func run() throws {
    LoggingSystem.bootstrap { label in
      var handler = StreamLogHandler.standardError(label: label)
      handler.logLevel = .warning
      return handler
    }
    try checkSelection()
    let plan = BenchPlan(rounds: rounds, quick: quick)
    var report = BenchReport()
    for topic in BenchTopics.all where topics.isEmpty || topics.contains(topic.name) {
      try topic.check()
      for row in topic.rows where only.map(row.name.contains) ?? true {
        if !json { Output.note("\(row.name) …") }
        do {
          report.entries.append((row.goal, try row.run(plan)))
        } catch let skip as BenchSkip {
          Output.note("\(row.name) was skipped: \(skip)")
        }
      }
    }
    Output.line(json ? try report.json() : report.table())
  }
}
