internal import ArgumentParser
internal import Demos
internal import Terminal

/// `pinctl demo`: all demos, or one of them.
struct DemoCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "demo",
    abstract: "Shows what PinKit does on this machine, and checks it while it does.",
    discussion: """
      Without a subcommand it runs all demos. The exit code is 0 if every claim holds, 1 if one does not, and 64 if the \
      input makes no sense. What this machine lacks, as `pinctl doctor` shows it, is skipped with the reason, which is no \
      failure; a refusal of anything else is a claim that does not hold.

      With --json it prints an array with one object per demo:
      [{"demo", "claims": [{"contract", "claim", "holds", "evidence"}], "measurements", "ok", "skipped"}]. A subcommand \
      prints its one object.
      """,
    subcommands: [
      DemoAllCommand.self, TrackCommand.self, CowCommand.self, SnapshotCommand.self, NotifyCommand.self, GupCommand.self,
      FileCommand.self, FileWriterCommand.self, VringCommand.self, KvmCommand.self,
      SealCommand.self, BesideCommand.self,
    ],
    defaultSubcommand: DemoAllCommand.self)

  /// Runs one demo, prints its result and exits with its code.
  static func perform(_ demo: any Demo, on stage: DemoStage? = nil, json: Bool) throws {
    let result = try demo.run(on: stage ?? DemoStage(isSilent: json))
    if json { Output.line(try result.json()) }
    if !result.ok { throw ExitCode.failure }
  }
}

/// `pinctl demo` without more. A command of its own: a parent's `--json` would take that of its subcommands.
struct DemoAllCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "all", abstract: "Runs all demos: what `pinctl demo` does without a subcommand.")

  @Flag(help: "Print an array with one result object per demo as JSON, and nothing else.")
  var json = false

  func run() throws {
    let stage = DemoStage(isSilent: json)
    let results = DemoCatalogue.all.map { DemoCatalogue.show($0, on: stage) }
    if json { Output.line(try results.json()) }
    if !results.allSatisfy(\.ok) { throw ExitCode.failure }
  }
}
