internal import Guest
internal import PinKit
internal import Terminal

/// Two guests, one in a region and one in its clone.
struct KvmCloneScene: DemoScene {
  let title = "a guest in a clone"

  struct Outcome {
    var mechanism: WriteTracking.Mechanism
    /// Words of the original that changed while only the clone's guest wrote, and how many were looked at.
    var changed = 0
    var checked = 0
    /// What is wrong with each side when both have written.
    var flaws: [String?] = []
    var stores: [UInt64] = []
    /// Pages on which the two have frames of their own.
    var parted = 0
    var pages = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "The clone shares all frames, and the guest of the original has translations to them that allow writing. Both guests then write every page, "
        + "in different orders. The first write of either must find its translation gone, and the frame of the other must stay as it was."
    )
    var found = DemoFindings()
    for mechanism in KvmMemory.synchronous {
      found.attempt("guest: clone by \(mechanism.rawValue)", needing: [.mechanism(mechanism, .pool)], on: stage) { found in
        var outcome = Outcome(mechanism: mechanism)
        try KvmMemory.with(.pool, pages: 132) { try play($0, &outcome) }
        let claims = Self.judge(outcome)
        stage.show(claims)
        found.claims += claims
      }
    }
    return found
  }

  private func play(_ region: Region, _ outcome: inout Outcome) throws {
    let walk = GuestWalk(in: region)
    var machine = try GuestMachine(in: region)
    try machine.run(walk.stores(from: 1, count: 3 * walk.wordCount))
    let original = try walk.words(in: region)
    let clone = try region.clone(mechanism: outcome.mechanism)

    let copied = GuestThread(in: clone, walk: GuestWalk(walk.pages, pageSize: region.pageSize, hop: 77))
    copied.start()
    defer { try? copied.stop() }
    let enough = UInt64(20 * walk.wordCount)
    KvmWait.until { copied.progress >= enough || copied.failure != nil }
    let now = try walk.words(in: region)
    outcome.checked = now.count
    outcome.changed = zip(now, original).count { $0 != $1 }

    let next = UInt64(3 * walk.wordCount + 1)
    try machine.run(walk.stores(from: next, count: 5 * walk.wordCount))
    try copied.stop()
    let last = next - 1 + UInt64(5 * walk.wordCount)
    outcome.flaws = [
      walk.flaw(in: try walk.words(in: region), from: last, to: last),
      copied.walk.flaw(in: try copied.walk.words(in: clone), from: copied.progress, to: copied.horizon),
    ]
    outcome.stores = [last, copied.progress]
    for page in walk.pages where try region.frameState(page).frame != clone.frameState(page).frame { outcome.parted += 1 }
    outcome.pages = walk.pages.count
    try clone.unmap()
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    let name = "guest, clone by \(outcome.mechanism.rawValue)"
    let wrong = outcome.flaws.compactMap(\.self)
    return [
      Claim(
        contract: "W5", claim: "\(name): the original does not change while the clone's guest writes",
        holds: outcome.checked > 0 && outcome.changed == 0,
        evidence: "\(outcome.changed) of \(outcome.checked.grouped) words changed."),
      Claim(
        contract: "N5", claim: "\(name): both guests end with their own bytes, on frames of their own",
        holds: outcome.flaws.count == 2 && wrong.isEmpty && outcome.parted == outcome.pages
          && outcome.stores.allSatisfy { $0 > 0 },
        evidence:
          "\(outcome.stores.map(\.grouped).joined(separator: " and ")) stores; \(outcome.parted) of \(outcome.pages) pages have parted."
          + (wrong.first.map { " First: \($0)." } ?? "")),
    ]
  }
}
