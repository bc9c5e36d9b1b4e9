internal import ArgumentParser
internal import Reports
internal import Terminal

/// `pinctl inspect`: a picture of any process's memory.
struct Inspect: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract:
      "Draws the memory of a process: what is there, dirty, shared, huge, swapped, write-protected, and who else maps it.",
    discussion: """
      Without a range, one line for each mapping. With one, a map of its pages: START-END in hexadecimal as in /proc/PID/maps, or \
      one address, which stands for the mapping that holds it. Stops nobody and changes nothing. Map counts, and which pages of \
      files are dirty, only root may see; what could not be seen is said.
      """)

  @Argument(help: ArgumentHelp("The process.", valueName: "pid"), completion: .shellCommand("ls /proc | grep '^[1-9]'"))
  var pid: Int32

  @Argument(help: ArgumentHelp("START-END, or an address, in hexadecimal.", valueName: "range"))
  var range: InspectedRange?

  @Flag(help: "Print one JSON object: the mappings, and the runs of pages if there is a range.")
  var json = false

  func run() throws {
    let report = try InspectReport(pid: pid, range: range)
    guard !json else { return Output.line(try report.json()) }
    let screen = Screen()
    InspectPicture(screen: screen, report: report).lines.forEach { screen.show($0) }
  }
}

extension InspectedRange: ExpressibleByArgument {}
