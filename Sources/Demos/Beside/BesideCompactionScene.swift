internal import Foundation
internal import Glibc
internal import PinKit
internal import Synchronization
internal import Terminal

/// The kernel moves pages, and a page that is on its way is not there.
struct BesideCompactionScene: BesideScene {
  let title = "the kernel moves pages"
  let name = "compaction"
  let contract = "K4"
  let story =
    "A thread has the kernel compact memory, over and over; a page that it moves is in no page table for a moment. Meanwhile snapshots are "
    + "taken, every other page is dropped or written, and each snapshot is read, page by page."

  struct Outcome: Codable {
    var snapshots = 0
    var pages = 0
    var wrong = 0
    /// Pages with bytes that a snapshot did not list as stored.
    var unlisted = 0
    var moved = 0
  }

  private static let pages = 8192

  func perform() throws -> Outcome {
    let trigger = unsafe open("/proc/sys/vm/compact_memory", O_WRONLY | O_CLOEXEC)
    guard trigger >= 0 else { throw BesideObstacle("only root can have memory compacted, on a kernel that can.") }
    let space = try DemoSpace.make()
    let region = try space.map(.anonymous(hugePages: .never), pages: Self.pages)
    var rounds = [Int?](repeating: 0, count: Self.pages)
    for page in 0..<Self.pages { try BesidePages.write(region, page, 0) }
    var outcome = Outcome()
    let before = Self.movedPages
    let compactor = BesideThread { _ = unsafe Glibc.write(trigger, "1", 1) }
    let deadline = Date(timeIntervalSinceNow: 4)
    var round = 0
    while Date() < deadline || outcome.snapshots < 3 {
      round += 1
      let snapshot = try region.snapshot()
      let then = rounds
      for page in stride(from: round % 3, to: Self.pages, by: 3) {
        if page % 2 == 0 {
          try region.discard(page..<page + 1)
          rounds[page] = nil
        } else {
          try BesidePages.write(region, page, round)
          rounds[page] = round
        }
      }
      outcome.wrong += try BesidePages.wrong(snapshot, then, in: 0..<Self.pages)
      let stored = Set(try snapshot.storedRuns().joined())
      outcome.unlisted += then.indices.count { then[$0] != nil && !stored.contains($0) }
      outcome.snapshots += 1
      outcome.pages += Self.pages
      snapshot.close()
    }
    compactor.stop()
    close(trigger)
    outcome.moved = Self.movedPages - before
    try space.close()
    if outcome.moved == 0, outcome.wrong + outcome.unlisted == 0 { throw BesideObstacle("the kernel had nothing to move.") }
    return outcome
  }

  /// `pgmigrate_success`, of the whole machine.
  private static var movedPages: Int {
    let text = (try? String(contentsOfFile: "/proc/vmstat", encoding: .utf8)) ?? ""
    return text.split(separator: "\n").compactMap { line in
      line.hasPrefix("pgmigrate_success ") ? Int(line.split(separator: " ")[1]) : nil
    }.first ?? 0
  }

  func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "K4", claim: "a snapshot has the bytes of pages that were on their way",
        holds: outcome.pages > 0 && outcome.wrong == 0,
        evidence: "\(outcome.wrong) of \(outcome.pages.grouped) pages wrong in \(counted(outcome.snapshots, "snapshot")); "
          + "the kernel moved \(counted(outcome.moved, "page")) meanwhile."),
      Claim(
        contract: "K4", claim: "and lists them as stored", holds: outcome.pages > 0 && outcome.unlisted == 0,
        evidence: "\(counted(outcome.unlisted, "page")) with bytes were not listed."),
    ]
  }
}
