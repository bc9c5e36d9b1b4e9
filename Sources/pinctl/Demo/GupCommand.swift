internal import ArgumentParser
internal import Demos

/// `pinctl demo gup`.
struct GupCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "gup",
    abstract: "Loses a device's write to a file without the rules for pins, and keeps it with them.",
    discussion: """
      Three scenes: the four steps (a device writes through a pin, the page is cleaned, the device writes again, the page is \
      unpinned) by a memory manager that knows nothing of pins and by PinKit, side by side; a device that writes while the page \
      is on its way to the file; and long-term pins, of which PinKit refuses those that the kernel refuses.

      Files are made in the temporary directory and, to find a file system that tracks dirty pages, one without a name in the \
      current one. The exit code is 0 if every claim holds or nothing could be shown, 1 if one does not hold, and 64 if the input \
      makes no sense.
      """)

  @Flag(help: "Print the result as one JSON object, and nothing else.")
  var json = false

  func run() throws { try DemoCommand.perform(GupDemo(), json: json) }
}
