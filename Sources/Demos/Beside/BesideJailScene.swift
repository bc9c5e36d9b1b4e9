internal import Foundation
internal import Glibc
internal import PinKit

/// A daemon that has read its configuration, and locks itself into an empty directory.
struct BesideJailScene: BesideScene {
  let title = "a jail without /proc"
  let needs: [DemoNeed] = DemoNeed.all(.anonymous)
  let name = "jail"
  let contract = "K5"
  let story =
    "Regions are tracked by every mechanism. Then chroot(2) into an empty directory: no /proc, no /dev, no /sys. The watchdog looks around a "
    + "few times; writes are collected, snapshots taken and read."

  struct Outcome: Codable {
    struct Kind: Codable {
      var mechanism: String
      var collected = 0
      var written = 0
      var wrong: Int?
      var refusal: String?
    }
    var kinds: [Kind] = []
    var alarms: [String] = []
  }

  private static let pages = 128

  func perform() throws -> Outcome {
    let log = BesideLog()
    let space = try log.space(policy: .terminate)
    var outcome = Outcome()
    var tracked: [(Region, WriteTracker)] = []
    for mechanism in WriteTracking.Mechanism.allCases where mechanism != .automatic {
      let region = try space.map(.anonymous(hugePages: .never), pages: Self.pages)
      for page in 0..<Self.pages { try BesidePages.write(region, page, 0) }
      let tracker = try region.trackWrites(mechanism)
      _ = try tracker.collect()
      tracked.append((region, tracker))
    }
    let name = "pinctl-jail-\(UUID().uuidString)"
    // Whoever has a directory's descriptor can empty the jail's place from inside.
    let outside = unsafe open(NSTemporaryDirectory(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard outside >= 0, unsafe mkdirat(outside, name, 0o700) == 0 else { throw LedgerFailure("make a directory", errno) }
    defer {
      _ = unsafe unlinkat(outside, name, AT_REMOVEDIR)
      close(outside)
    }
    guard unsafe chroot(NSTemporaryDirectory() + "/" + name) == 0 else { throw BesideObstacle("only root may chroot(2).") }
    _ = unsafe chdir("/")
    usleep(1_000_000)
    for (region, tracker) in tracked {
      var kind = Outcome.Kind(mechanism: "\(tracker.mechanism)")
      for page in stride(from: 0, to: Self.pages, by: 3) {
        try BesidePages.write(region, page, 1)
        kind.written += 1
      }
      kind.collected = try tracker.collect().count
      do {
        let snapshot = try region.snapshot()
        let rounds = (0..<Self.pages).map { Optional($0 % 3 == 0 ? 1 : 0) }
        for page in 0..<Self.pages { try BesidePages.write(region, page, 2) }
        kind.wrong = try BesidePages.wrong(snapshot, rounds, in: 0..<Self.pages)
      } catch { kind.refusal = "\(error)" }
      outcome.kinds.append(kind)
    }
    try space.close()
    outcome.alarms = log.lines
    return outcome
  }

  func judge(_ outcome: Outcome) -> [Claim] {
    let kinds = outcome.kinds
    let described = kinds.map { "\($0.mechanism): \($0.collected) of \($0.written)" }.joined(separator: ", ")
    let snapshots = kinds.map { kind in
      "\(kind.mechanism): \(kind.wrong.map { $0 == 0 ? "right" : "\($0) pages wrong" } ?? kind.refusal ?? "nothing")"
    }.joined(separator: ", ")
    return [
      Claim(
        contract: "K5", claim: "in the jail every write is collected, by every mechanism",
        holds: kinds.count == 4 && kinds.allSatisfy { $0.collected == $0.written && $0.written > 0 },
        evidence: "\(described)."),
      Claim(
        contract: "K5", claim: "and a snapshot is right, or is refused with a reason",
        holds: kinds.count == 4 && kinds.allSatisfy { $0.wrong == 0 || ($0.wrong == nil && $0.refusal != nil) },
        evidence: "\(snapshots)."),
      Claim(
        contract: "K3", claim: "the jail alarms nobody", holds: !kinds.isEmpty && outcome.alarms.isEmpty,
        evidence: outcome.alarms.isEmpty ? "Nothing was logged." : outcome.alarms.joined(separator: "; ")),
    ]
  }
}
