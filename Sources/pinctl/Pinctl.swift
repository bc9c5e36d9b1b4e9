internal import ArgumentParser

@main
struct Pinctl: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "pinctl",
    abstract: "Shows, measures and checks what PinKit does on this machine.",
    subcommands: [Doctor.self, Inspect.self, ImageCommand.self, DemoCommand.self, Bench.self])
}
