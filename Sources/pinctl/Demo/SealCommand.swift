internal import ArgumentParser
internal import Demos

/// `pinctl demo seal`.
struct SealCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "seal",
    abstract: "A key store whose keys are sealed, attacked by everything that reads memory.",
    discussion: """
      Five scenes: an answer that is longer than its buffer; one key after the other being used, and sealed again when nobody uses it; \
      pages that cannot be sealed as I/O is pending; a child process whose memory is read, by /proc/PID/mem and process_vm_readv, and which \
      dumps core; and a child that touches a page that was tampered with.

      The exit code is 0 if every claim holds or nothing could be shown, 1 if one does not hold, and 64 if the input makes no \
      sense. Colours need a terminal, and NO_COLOR turns them off.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: "How many keys the store has; each has a page of its own.")
  var keys = 24

  @Flag(help: .hidden)
  var victim = false

  func validate() throws {
    guard (8...256).contains(keys) else { throw ValidationError("--keys must be between 8 and 256.") }
  }

  func run() throws {
    if victim { return try SealVictim.run() }
    try DemoCommand.perform(SealDemo(keys: keys), json: json)
  }
}
