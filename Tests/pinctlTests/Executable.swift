import Foundation
import Testing

/// Starts the executable that was built beside the tests.
///
/// - Parameter temporary: The directory for its temporary files.
func startPinctl(
  _ arguments: [String], temporary: String? = nil, error: Any = FileHandle.nullDevice
) throws -> (process: Process, output: Pipe) {
  let process = Process()
  process.executableURL = try pinctlExecutable()
  process.arguments = arguments
  if let temporary {
    process.environment = ProcessInfo.processInfo.environment.merging(["TMPDIR": temporary]) { $1 }
  }
  let output = Pipe()
  process.standardOutput = output
  process.standardError = error
  try process.run()
  return (process, output)
}

/// Runs it to its end.
func pinctl(_ arguments: [String]) throws -> (code: Int32, output: Data, error: String) {
  let error = Pipe()
  let (process, output) = try startPinctl(arguments, error: error)
  let printed = output.fileHandleForReading.readDataToEndOfFile()
  let complained = error.fileHandleForReading.readDataToEndOfFile()
  process.waitUntilExit()
  return (process.terminationStatus, printed, String(decoding: complained, as: UTF8.self))
}

/// Where a program is, if it is in PATH.
func programPath(_ name: String) -> URL? {
  let folders = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":")
  return folders.map { URL(fileURLWithPath: "\($0)/\(name)") }
    .first { FileManager.default.isExecutableFile(atPath: $0.path) }
}

/// Where it was built.
func pinctlExecutable() throws -> URL {
  let own = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
  let beside = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
  let candidates = [own.deletingLastPathComponent(), beside].map { $0.appendingPathComponent("pinctl") }
  return try #require(candidates.first { FileManager.default.isExecutableFile(atPath: $0.path) })
}
