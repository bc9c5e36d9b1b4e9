internal import ArgumentParser
internal import Demos

/// `pinctl demo snapshot`.
struct SnapshotCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "snapshot",
    abstract: "Saves a table while it is written, beside fork() doing the same, and checks every byte of the files.",
    discussion: """
      Threads change a table in memory without a pause. PinKit takes a snapshot of it and writes it to an image, then \
      another with what changed since; both are restored and compared with the table as it must have been at that moment. \
      Damaged images must be refused. Then fork() saves the same memory twice, and the writers' times, the pauses and the \
      extra memory are shown side by side.

      The files need about four times the table's size under $TMPDIR (or /tmp) while it runs; they are always removed. The \
      exit code is 0 if every claim holds, 1 if one does not, and 64 if the input makes no sense.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: ArgumentHelp("The table's size.", valueName: "MiB"))
  var size = SnapshotPlan().size

  @Option(help: "How many threads write.")
  var writers = SnapshotPlan().writers

  @Option(help: "How long the writers are watched alone, and run between two snapshots.")
  var seconds = SnapshotPlan().seconds

  func validate() throws {
    guard (1...65_536).contains(size) else { throw ValidationError("--size must be between 1 and 65536.") }
    guard (1...8).contains(writers) else { throw ValidationError("--writers must be between 1 and 8.") }
    guard (0.02...60).contains(seconds) else { throw ValidationError("--seconds must be between 0.02 and 60.") }
  }

  func run() throws {
    try DemoCommand.perform(
      SnapshotDemo(plan: SnapshotPlan(size: size, writers: writers, seconds: seconds)), json: json)
  }
}
