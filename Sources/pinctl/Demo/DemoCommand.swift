internal import ArgumentParser
internal import Demos
internal import Terminal

/// `pinctl demo`: the first of all demos, one of them, or all.
struct DemoCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "demo",
    abstract: "Shows what PinKit does on this machine, and checks it while it does.",
    discussion: """
      Without a subcommand it shows the main job, in less than a minute; `pinctl demo all` is the long tour. The exit code is 0 if every claim holds, 1 if one does not, and 64 if the \
      input makes no sense. What this machine lacks, as `pinctl doctor` shows it, is skipped with the reason, which is no \
      failure; a refusal of anything else is a claim that does not hold.

      With --json it prints one object:
      {"demo", "claims": [{"contract", "claim", "holds", "evidence"}], "measurements", "ok", "skipped"}.
      `pinctl demo all` prints an array with one for each demo.
      """,
    subcommands: [
      CheckpointCommand.self, DemoAllCommand.self, TrackCommand.self, CowCommand.self, SnapshotCommand.self,
      NotifyCommand.self, GupCommand.self, FileCommand.self, FileWriterCommand.self, VringCommand.self, KvmCommand.self,
      SealCommand.self, BesideCommand.self,
    ],
    defaultSubcommand: CheckpointCommand.self)

  /// Runs one demo, prints its result and exits with its code.
  static func perform(_ demo: any Demo, on stage: DemoStage? = nil, json: Bool) throws {
    let result = try demo.run(on: stage ?? DemoStage(isSilent: json))
    if json { Output.line(try result.json()) }
    if !result.ok { throw ExitCode.failure }
  }
}

/// `pinctl demo all`. A command of its own: a parent's option would take that of its subcommands.
struct DemoAllCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "all", abstract: "Runs all of the following, one after the other.")

  @Flag(help: "Print an array with one result object per demo as JSON, and nothing else.")
  var json = false

  func run() throws {
    let stage = DemoStage(isSilent: json)
    let results = DemoCatalogue.all.map { DemoCatalogue.show($0, on: stage) }
    if json { Output.line(try results.json()) }
    if !results.allSatisfy(\.ok) { throw ExitCode.failure }
  }
}
