internal import Foundation
internal import PinKit

/// One thing that is done to a process by something other than PinKit.
protocol BesideScene: DemoScene, Sendable {
  associatedtype Outcome: Codable
  /// What the child process is told.
  var name: String { get }
  var story: String { get }
  /// Which contract a process breaks that does not live to the end.
  var contract: String { get }
  /// Runs in the child process. Throws ``BesideObstacle`` where this machine cannot show it.
  func perform() throws -> Outcome
  func judge(_ outcome: Outcome) -> [Claim]
}

/// Why a machine cannot show a scene: something other than PinKit is missing.
struct BesideObstacle: Error {
  var reason: String
  init(_ reason: String) { self.reason = reason }
}

/// What a child process says in its one line.
private struct BesideReport<Outcome: Codable>: Codable {
  var outcome: Outcome?
  var obstacle: String?
  var failure: String?
}

extension BesideScene {
  func playInChild() throws {
    var report = BesideReport<Outcome>()
    do { report.outcome = try perform() } catch let obstacle as BesideObstacle {
      report.obstacle = obstacle.reason
    } catch { report.failure = "\(error)" }
    FileHandle.standardOutput.write(try JSONEncoder().encode(report))
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(story)
    let ending = try BesideChild.run(["demo", "beside", "--scene", name])
    let report = try? JSONDecoder().decode(BesideReport<Outcome>.self, from: ending.output)
    if let obstacle = report?.obstacle {
      stage.say("Skipped: \(obstacle)")
      return DemoFindings(skipped: [.init(subject: title, reason: obstacle)])
    }
    let lives = Claim(
      contract: contract, claim: "\(title): the process goes on to its end",
      holds: ending.isOrderly && report?.outcome != nil, evidence: report?.failure ?? ending.description)
    stage.show()
    return DemoFindings(showing: [lives] + (report?.outcome.map(judge) ?? []), on: stage)
  }
}

/// A child that plays one scene.
struct BesideChild {
  var output = Data()
  var description = ""
  var isOrderly = false

  /// In seconds: to end a hang, not to judge speed.
  private static let patience = 120.0

  static func run(_ arguments: [String]) throws -> BesideChild {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
    process.arguments = arguments
    process.environment = ProcessInfo.processInfo.environment.merging(["SWIFT_BACKTRACE": "enable=no"]) { $1 }
    let (output, errors) = (Pipe(), Pipe())
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = output
    process.standardError = errors
    try process.run()
    let pid = process.processIdentifier
    let killer = DispatchWorkItem { kill(pid, SIGKILL) }
    DispatchQueue.global().asyncAfter(deadline: .now() + patience, execute: killer)
    let said = BesideReader(errors)
    var child = BesideChild(output: output.fileHandleForReading.readDataToEndOfFile())
    let complaint = said.text
    process.waitUntilExit()
    killer.cancel()
    child.isOrderly = process.terminationReason == .exit && process.terminationStatus == 0
    child.description =
      process.terminationReason == .exit
      ? "It ended with code \(process.terminationStatus)." : "It died of signal \(process.terminationStatus)."
    if let last = complaint.split(separator: "\n").last, !child.isOrderly { child.description += " It said: \(last)" }
    return child
  }
}

/// Reads a pipe to its end beside another one.
private final class BesideReader: @unchecked Sendable {  // the semaphore orders the one write before the read
  private var data = Data()
  private let isOver = DispatchSemaphore(value: 0)

  init(_ pipe: Pipe) {
    let handle = pipe.fileHandleForReading
    DispatchQueue.global().async {
      self.data = handle.readDataToEndOfFile()
      self.isOver.signal()
    }
  }

  var text: String {
    isOver.wait()
    return String(decoding: data, as: UTF8.self)
  }
}
