internal import Foundation
internal import Glibc
internal import PinKit
internal import Synchronization
internal import Terminal

/// A debugger, a job control shell, a paused container.
struct BesideStopScene: BesideScene {
  let title = "the process is stopped"
  let needs: [DemoNeed] = [.mechanism(.handlerThread, .anonymous)]
  let name = "stop"
  let contract = "K5"
  let story =
    "SIGSTOP in the middle of a fault, twice, each time for longer than a fault may take. Then SIGCONT: the time in which nobody could run is "
    + "nobody's fault."

  struct Outcome: Codable {
    var stops = 0
    var stoppedSeconds = 0.0
    var patience = 0.0
    var written = 0
    var collected = 0
    var alarms: [String] = []
  }

  func perform() throws -> Outcome {
    let log = BesideLog()
    var outcome = Outcome(patience: 2)
    let space = try log.space(patience: outcome.patience, policy: .terminate)
    let region = try space.map(.anonymous(hugePages: .never), pages: 64)
    let isIn = DispatchSemaphore(value: 0)
    let mayGoOn = DispatchSemaphore(value: 0)
    let tracker = try region.trackWrites(.handlerThread) { write in
      guard write.page == 7 else { return }
      isIn.signal()
      mayGoOn.wait()
    }
    let writer = Thread { for page in 0..<64 { try? BesidePages.write(region, page, 1) } }
    writer.start()
    isIn.wait()
    let stopper = Process()
    stopper.executableURL = URL(fileURLWithPath: "/bin/sh")
    let pid = ProcessInfo.processInfo.processIdentifier
    let span = 2.6
    stopper.arguments = [
      "-c", "for i in 1 2; do kill -STOP \(pid); sleep \(span); kill -CONT \(pid); done",
    ]
    let before = Date()
    try stopper.run()
    stopper.waitUntilExit()
    outcome.stoppedSeconds = Date().timeIntervalSince(before)
    outcome.stops = 2
    mayGoOn.signal()
    while !writer.isFinished { usleep(1000) }
    for page in 0..<64 where try region.load(fromByteOffset: page * 4096, as: UInt64.self) == BesidePages.word(page, 1) {
      outcome.written += 1
    }
    outcome.collected = try tracker.collect().count
    outcome.alarms = log.lines
    try space.close()
    return outcome
  }

  func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "K5", claim: "two stops in the middle of a fault, and every write lands and is collected",
        holds: outcome.stoppedSeconds > 2 * outcome.patience && outcome.written == 64 && outcome.collected == 64,
        evidence: "Stopped for \(outcome.stoppedSeconds.rounded(to: 1)) s in all, with a patience of "
          + "\(outcome.patience.rounded(to: 0)) s; \(outcome.written) of 64 pages written, \(outcome.collected) collected."),
      Claim(
        contract: "K3", claim: "nobody is accused", holds: outcome.stops == 2 && outcome.alarms.isEmpty,
        evidence: outcome.alarms.isEmpty ? "Nothing was logged." : outcome.alarms.joined(separator: "; ")),
    ]
  }
}
