internal import ArgumentParser
internal import Demos

/// `pinctl demo kvm`.
struct KvmCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "kvm",
    abstract: "Runs a guest inside a region: a second MMU that only the kernel's notifiers keep honest.",
    discussion: """
      The memory of a small virtual machine is a region. Four scenes: which pages the guest dirties, by every mechanism, with \
      every set compared with what the guest was told to write; snapshots while it writes without a pause; a guest in a clone; \
      and pages that are discarded and protected under it. It needs /dev/kvm, and says so where there is none.

      The exit code is 0 if every claim holds or nothing could be shown, 1 if one does not hold, and 64 if the input makes no \
      sense. Colours need a terminal, and NO_COLOR turns them off.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  @Option(help: "How many rounds of writing and collecting each mechanism gets.")
  var rounds = 80

  func validate() throws {
    guard (4...1000).contains(rounds) else { throw ValidationError("--rounds must be between 4 and 1000.") }
  }

  func run() throws {
    try DemoCommand.perform(KvmDemo(rounds: rounds), json: json)
  }
}
