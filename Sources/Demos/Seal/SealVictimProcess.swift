internal import Foundation

/// A child that runs ``SealVictim``, in a directory of its own.
final class SealVictimProcess {
  let directory = FileManager.default.temporaryDirectory.appendingPathComponent("pinctl-seal-\(UUID().uuidString)")
  private let process = Process()
  private let (input, output) = (Pipe(), Pipe())
  private var pending = Data()
  var pid: Int32 { process.processIdentifier }

  init(_ needles: SealNeedles) throws {
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
    process.arguments = ["demo", "seal", "--victim"]
    process.currentDirectoryURL = directory
    process.environment = ProcessInfo.processInfo.environment.merging(["SWIFT_BACKTRACE": "enable=no"]) { $1 }
    process.standardInput = input
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try process.run()
    tell(needles.text)
    guard answer() == "ready" else { throw POSIXError(.ECHILD) }
  }

  func ask(_ what: String) -> String? {
    tell(what)
    return answer()
  }

  /// Tells it to do what ends it; the signal that did, or `nil` if it ended by itself.
  func end(by what: String) -> Int32? {
    tell(what)
    try? input.fileHandleForWriting.close()
    process.waitUntilExit()
    return process.terminationReason == .uncaughtSignal ? process.terminationStatus : nil
  }

  private func tell(_ text: String) { try? input.fileHandleForWriting.write(contentsOf: Data((text + "\n").utf8)) }

  /// `nil` if it has died.
  private func answer() -> String? {
    while true {
      if let end = pending.firstIndex(of: 10) {
        let line = String(decoding: pending[..<end], as: UTF8.self)
        pending = Data(pending[(end + 1)...])
        return line
      }
      let more = output.fileHandleForReading.availableData
      if more.isEmpty { return nil }
      pending += more
    }
  }

  deinit {
    try? input.fileHandleForWriting.close()
    if process.isRunning {
      process.terminate()
      process.waitUntilExit()
    }
    try? FileManager.default.removeItem(at: directory)
  }
}
