import Foundation
import PinKit
import Testing
import Topics

@Suite("What pinctl writes") struct OutputTests {
  /// Runs it with its standard output, or that and the error, on a device that has no room.
  private func run(_ arguments: [String], fillsErrors: Bool = false) throws -> (code: Int32, wasKilled: Bool, error: String)
  {
    let process = Process()
    process.executableURL = try pinctlExecutable()
    process.arguments = arguments
    let full = try #require(FileHandle(forWritingAtPath: "/dev/full"))
    process.standardOutput = full
    let error = Pipe()
    if fillsErrors { process.standardError = full } else { process.standardError = error }
    try process.run()
    var text = Data()
    if !fillsErrors { text = error.fileHandleForReading.readDataToEndOfFile() }
    process.waitUntilExit()
    return (process.terminationStatus, process.terminationReason == .uncaughtSignal, String(decoding: text, as: UTF8.self))
  }

  private static func image() throws -> String {
    let path = "\(FileManager.default.temporaryDirectory.path)/pinkit-output-\(UInt64.random(in: .min ... .max))"
    let space = try AddressSpace()
    let region = try space.map(.anonymous, pages: 4)
    try region.store(UInt8(1), toByteOffset: 0)
    let snapshot = try region.snapshot()
    _ = try snapshot.write(to: path)
    snapshot.close()
    try space.close()
    return path
  }

  @Test("K5: output that finds no room makes every command fail, with its reason")
  func fullDisk() throws {
    let image = try Self.image()
    defer { for path in [image, image + ".pinkit", image + ".plain"] { try? FileManager.default.removeItem(atPath: path) } }
    let own = "\(ProcessInfo.processInfo.processIdentifier)"
    for arguments in [
      ["doctor"], ["doctor", "--json"], ["inspect", own], ["inspect", own, "--json"], ["image", "info", image],
      ["image", "info", "--json", image], ["image", "verify", image], ["image", "restore", image, "--to", image + ".plain"],
      ["demo", "notify"], ["demo", "notify", "--json"],
      ["bench", "--quick", "--rounds", "1", "--only", "first-write/async"],
      ["bench", "--quick", "--rounds", "1", "--only", "first-write/async", "--json"], ["--help"], ["help", "bench"],
    ] {
      let result = try run(arguments)
      #expect(result.code == 1 && !result.wasKilled, "\(arguments): \(result)")
      #expect(
        result.error.contains("the output could not be written: No space left on device"), "\(arguments): \(result.error)")
    }
  }

  @Test("K5: nor does it trap where the reason finds no room, either") func fullDiskForBoth() throws {
    for arguments in [["doctor"], ["bench", "--quick", "--rounds", "1", "--only", "first-write/async"]] {
      let result = try run(arguments, fillsErrors: true)
      #expect(result.code == 1 && !result.wasKilled, "\(arguments): \(result)")
    }
  }

  @Test("A measurement of nothing fails, and says what there is", arguments: [[], ["track"]])
  func nothing(_ topics: [String]) throws {
    let result = try pinctl(["bench"] + topics + ["--only", "NOTHING"])
    #expect(result.code == 1)
    #expect(result.output.isEmpty)
    #expect(result.error.contains("NOTHING"))
    for topic in BenchTopics.all {
      let isChosen = topics.isEmpty || topics.contains(topic.name)
      #expect(result.error.contains("  \(topic.name): ") == isChosen, "\(topic.name)")
      if isChosen { for row in topic.rows { #expect(result.error.contains(row.name)) } }
    }
  }
}
