import Foundation
import Testing

/// Runs the executable that was built beside the tests.
func pinctl(_ arguments: [String]) throws -> (code: Int32, output: Data, error: String) {
  let process = Process()
  let own = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
  let beside = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
  let candidates = [own.deletingLastPathComponent(), beside].map { $0.appendingPathComponent("pinctl") }
  let executable: URL = try #require(candidates.first { FileManager.default.isExecutableFile(atPath: $0.path) })
  process.executableURL = executable
  process.arguments = arguments
  let (output, error) = (Pipe(), Pipe())
  process.standardOutput = output
  process.standardError = error
  try process.run()
  let printed = output.fileHandleForReading.readDataToEndOfFile()
  let complained = error.fileHandleForReading.readDataToEndOfFile()
  process.waitUntilExit()
  return (process.terminationStatus, printed, String(decoding: complained, as: UTF8.self))
}
