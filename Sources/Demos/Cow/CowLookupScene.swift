internal import PinKit

/// The needless copy (W4): lookups that hold frames for a moment, while their owner writes.
struct CowLookupScene: DemoScene {
  let title = "somebody looks a frame up, and the owner writes"

  struct Outcome {
    var policy: ReusePolicy
    var pages: Int
    /// Pages that nobody else maps are written: frames that are marked as the region's own, without a lookup and with one on each; and
    /// with one on each, frames that have lost the mark.
    var quiet = Round()
    var lookedUp = Round()
    var unmarked = Round()
    /// Pages of the region and of its clone that do not hold what they should.
    var wrong = 0
    var checked = 0
    var ledger = CowLedger()
  }

  /// Pages whose frame changed, and what the counters say.
  struct Round: Equatable {
    var moved = 0
    var copies = 0
    var spurious = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "An I/O has the pages of a region pinned while the region is cloned. What is pinned is not shared: the clone gets copies at once, "
        + "and the region's frames stay marked as its own. The I/O ends. Now somebody looks the frames up, as a scanner or a device model "
        + "would, and holds each for a moment; and the region, whose pages the clone has left protected, writes.")
    var found = DemoFindings()
    for policy in [ReusePolicy.refcount, .exclusive] {
      let outcome = try Self.perform(policy)
      stage.show()
      stage.say(stage.bold("\(policy)") + ", the first of \(outcome.pages) pages:")
      stage.draw(outcome.ledger.lines(stage))
      let claims = Self.judge(outcome)
      stage.show(claims, about: policy.description)
      found.claims += claims
      found.measurements.append(
        .init(
          subject: policy.description, name: "needless copies", value: Double(outcome.lookedUp.spurious), unit: "pages"))
      found.measurements.append(
        .init(
          subject: policy.description, name: "needless copies of frames without the mark",
          value: Double(outcome.unmarked.spurious), unit: "pages"))
    }
    return found
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    let (quiet, held, policy) = (outcome.quiet, outcome.lookedUp, outcome.policy)
    let evidence =
      "\(held.moved) of \(outcome.pages) pages changed frame; counted: \(held.copies) copies, of them \(held.spurious) spurious. "
      + "Without lookups: \(quiet.moved), \(quiet.copies) and \(quiet.spurious). With lookups, on frames that lost their mark to a "
      + "clone that is gone: \(outcome.unmarked.moved), \(outcome.unmarked.copies) and \(outcome.unmarked.spurious)."
    let all = Round(moved: outcome.pages, copies: outcome.pages, spurious: outcome.pages)
    let cost =
      policy == .refcount
      ? Claim(
        contract: "W4", claim: "\(policy): a lookup costs a needless copy, and each is counted",
        holds: held == all && quiet == Round(), evidence: evidence)
      : Claim(
        contract: "W4", claim: "\(policy): a lookup costs no copy",
        holds: outcome.pages > 0 && held == Round() && quiet == Round(), evidence: evidence)
    return [
      cost,
      Claim(
        contract: "W4", claim: "\(policy): lookups corrupt nothing",
        holds: outcome.checked > 0 && outcome.wrong == 0,
        evidence: "\(outcome.wrong) of \(outcome.checked) pages hold something else than what was written there last."),
    ]
  }

  static func perform(_ policy: ReusePolicy, pages: Int = 64) throws -> Outcome {
    var outcome = Outcome(policy: policy, pages: pages)
    outcome.quiet = try round(policy, isMarked: true, looksUp: false, &outcome, draws: false)
    outcome.lookedUp = try round(policy, isMarked: true, looksUp: true, &outcome, draws: true)
    outcome.unmarked = try round(policy, isMarked: false, looksUp: true, &outcome, draws: false)
    return outcome
  }

  /// Makes frames that nobody else maps, with the exclusive mark or without it, and writes them once.
  private static func round(
    _ policy: ReusePolicy, isMarked: Bool, looksUp: Bool, _ outcome: inout Outcome, draws: Bool
  ) throws -> Round {
    let pages = outcome.pages
    let space = try DemoSpace.make()
    let region = try space.map(.pool, pages: pages)
    func write(_ round: UInt64) throws {
      for page in 0..<pages { try region.store(round << 32 + UInt64(page), toByteOffset: page * region.pageSize) }
    }
    try write(1)
    var clone: Region?
    var pins: [HeldPin] = []
    var lookups: [HeldReference] = []
    var ledger = CowLedger()
    func note(_ what: String) throws {
      var holders = [("region", try region.frameState(0))]
      if let pin = pins.first { holders.append(("I/O", pin.state)) }
      if let lookup = lookups.first { holders.append(("lookup", lookup.reference.state)) }
      if let clone { holders.append(("clone", try clone.frameState(0))) }
      ledger.note(what, holders)
    }
    if isMarked { pins = try (0..<pages).map { HeldPin(try region.pin($0..<$0 + 1, .write)) } }
    try note("an I/O pins the page")
    let made = try region.clone(reuse: policy)
    clone = made
    try note("the region is cloned")
    pins = []
    try note("the I/O ends")
    if !isMarked {
      try made.unmap()
      clone = nil
    }
    if looksUp { lookups = try (0..<pages).map { HeldReference(try region.lookUp($0)) } }
    try note("a lookup takes a reference")

    let frames = try (0..<pages).map { try region.frameState($0).frame }
    let before = space.statistics
    try write(2)
    let after = space.statistics
    try note("the region writes")
    let moved = try (0..<pages).filter { try region.frameState($0).frame != frames[$0] }.count
    outcome.wrong += try wrongPages(region, 2) + (clone.map { try wrongPages($0, 1) } ?? 0)
    outcome.checked += pages * (clone == nil ? 1 : 2)
    if draws { outcome.ledger = ledger }
    lookups = []
    try space.close()
    return Round(
      moved: moved, copies: Int(after.copies - before.copies), spurious: Int(after.spuriousCopies - before.spuriousCopies))
  }

  private static func wrongPages(_ region: Region, _ round: UInt64) throws -> Int {
    try (0..<region.pageCount).filter { page in
      let value: UInt64 = try region.load(fromByteOffset: page * region.pageSize)
      return value != round << 32 + UInt64(page)
    }.count
  }
}
