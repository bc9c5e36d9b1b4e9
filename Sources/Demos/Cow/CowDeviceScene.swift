internal import PinKit

/// The coherent pin (W4): a device holds a frame for long, and its owner goes on to write the page.
struct CowDeviceScene: DemoScene {
  let title = "a device holds a page of its owner"

  struct Outcome {
    var policy: ReusePolicy
    /// After each of so many writes, by the owner and by the device in turn: did the other side read it?
    var writes = 0
    var seen = 0
    /// After each of them: did the owner's page have the frame that the pin holds?
    var sameFrame = 0
    /// The first write that the other side did not see.
    var firstLost = ""
    /// Clones whose bytes are not those of the moment when they were made.
    var changedClones = 0
    var clones = 0
    var ledger = CowLedger()
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "The owner of a page pins it for writing, for a device that reads and writes the frame itself. Then the region is cloned, again and "
        + "again, and owner and device write in turn. They must go on to see each other's writes, and the clones must not.")
    var found = DemoFindings()
    for policy in [ReusePolicy.exclusive, .refcount] {
      let outcome = try Self.perform(policy)
      stage.show()
      stage.say(stage.bold("\(policy)") + ", the first round:")
      stage.draw(outcome.ledger.lines(stage))
      let claims = Self.judge(outcome)
      stage.show(claims, about: policy.description)
      found.claims += claims
    }
    return found
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    let policy = outcome.policy
    let evidence =
      "\(outcome.seen) of \(outcome.writes) writes were seen by the other side; after \(outcome.sameFrame) of them the page had the "
      + "frame that the pin holds." + (outcome.firstLost.isEmpty ? "" : " First lost: \(outcome.firstLost).")
    let coherent = outcome.seen == outcome.writes && outcome.sameFrame == outcome.writes
    return [
      policy == .exclusive
        ? Claim(
          contract: "W4", claim: "\(policy): device and owner stay with one frame",
          holds: outcome.writes > 0 && coherent, evidence: evidence)
        : Claim(
          contract: "W4", claim: "\(policy): alone it lets them part", holds: outcome.writes > 0 && !coherent,
          evidence: evidence),
      Claim(
        contract: "W5", claim: "\(policy): clones keep the bytes of their moment, whatever the device writes",
        holds: outcome.clones > 0 && outcome.changedClones == 0,
        evidence: "\(outcome.changedClones) of \(outcome.clones) clones changed."),
    ]
  }

  static func perform(_ policy: ReusePolicy, rounds: Int = 8) throws -> Outcome {
    let space = try DemoSpace.make()
    let owner = try space.map(.pool, pages: 1)
    var outcome = Outcome(policy: policy)
    var value: UInt64 = 1
    try owner.store(value, toByteOffset: 0)
    let device = HeldPin(try owner.pin(0..<1, .write))
    outcome.ledger.note("the owner pins its page", [("owner", try owner.frameState(0)), ("device", device.state)])

    var clones: [(region: Region, value: UInt64)] = []
    func note(_ what: String) throws {
      guard clones.count == 1 else { return }
      outcome.ledger.note(
        what,
        [
          ("owner", try owner.frameState(0)), ("device", device.state),
          ("clone", try clones[0].region.frameState(0)),
        ])
    }
    func check(_ what: String, sees: UInt64) throws {
      outcome.writes += 1
      if sees == value {
        outcome.seen += 1
      } else if outcome.firstLost.isEmpty {
        outcome.firstLost = "\(what) \(value), and the other side reads \(sees)"
      }
      if try owner.frameState(0).frame == device.state.frame { outcome.sameFrame += 1 }
    }

    for _ in 0..<rounds {
      clones.append((try owner.clone(reuse: policy), try owner.load(fromByteOffset: 0)))
      try note("the region is cloned")
      value += 1
      try owner.store(value, toByteOffset: 0)
      try note("the owner writes \(value)")
      try check("the owner writes", sees: device.load())
      value += 1
      try device.store(value)
      try note("the device writes \(value)")
      try check("the device writes", sees: try owner.load(fromByteOffset: 0))
    }
    for (clone, value) in clones {
      outcome.clones += 1
      let now: UInt64 = try clone.load(fromByteOffset: 0)
      if now != value { outcome.changedClones += 1 }
      try clone.unmap()
    }
    try owner.unmap(whilePinned: .leaveFrames)
    try space.close()
    return outcome
  }
}
