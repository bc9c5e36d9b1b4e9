internal import PinKit

/// The attack itself.
enum CowLeak {
  /// One page, drawn step by step.
  struct Outcome {
    /// What stood there, what the parent wrote, what the child read through its pin, and what the parent reads.
    var before: String
    var secret: String
    var seen: String
    var parentReads: String
    /// Before the secret was written.
    var countsBefore: FrameCounts
    var decided: ReuseDecision
    var isSameFrame: Bool
    var ledger = CowLedger()
  }

  /// Many pages, counted.
  struct Total {
    var attacked = 0
    var leaked = 0
    var kept = 0
    /// Writes that the parent cannot read back.
    var lost = 0
  }

  static func attack(_ policy: ReusePolicy) throws -> Outcome {
    let space = try DemoSpace.make()
    let parent = try space.map(.pool, pages: 1)
    let before = CowText("public")
    let secret = CowText("key " + String(UInt32.random(in: .min ... .max), radix: 16))
    var ledger = CowLedger()

    try parent.store(before.bytes, toByteOffset: 0)
    ledger.note("the parent writes", [("parent", try parent.frameState(0))])
    let child = try parent.clone(reuse: policy)
    ledger.note(
      "the parent is cloned", [("parent", try parent.frameState(0)), ("child", try child.frameState(0))])
    let pin = HeldPin(try child.pin(0..<1))
    ledger.note(
      "the child pins its page",
      [("parent", try parent.frameState(0)), ("child", try child.frameState(0)), ("pin", pin.state)])
    try child.unmap(whilePinned: .leaveFrames)
    let shared = try parent.frameState(0)
    ledger.note("the child unmaps it", [("parent", shared), ("pin", pin.state)])
    try parent.store(secret.bytes, toByteOffset: 0)
    let after = try parent.frameState(0)
    ledger.note("the parent writes a secret", [("parent", after), ("pin", pin.state)])
    let seen = CowText(bytes: pin.load())
    let parentReads = CowText(bytes: try parent.load(fromByteOffset: 0))
    let outcome = Outcome(
      before: before.description, secret: secret.description, seen: seen.description,
      parentReads: parentReads.description, countsBefore: shared.counts, decided: policy.decide(shared.counts),
      isSameFrame: shared.frame == after.frame, ledger: ledger)
    try parent.unmap()
    try space.close()
    return outcome
  }

  /// The same with every page of a region pinned at once.
  static func attackMany(_ policy: ReusePolicy, pages: Int = 256) throws -> Total {
    let space = try DemoSpace.make()
    let parent = try space.map(.pool, pages: pages)
    let salt = UInt64.random(in: 1...UInt64.max / 4)
    func before(_ page: Int) -> UInt64 { salt + UInt64(page) }
    func secret(_ page: Int) -> UInt64 { ~before(page) }
    for page in 0..<pages { try parent.store(before(page), toByteOffset: page * parent.pageSize) }
    let child = try parent.clone(reuse: policy)
    let pins = try (0..<pages).map { HeldPin(try child.pin($0..<$0 + 1)) }
    try child.unmap(whilePinned: .leaveFrames)
    for page in (0..<pages).shuffled() { try parent.store(secret(page), toByteOffset: page * parent.pageSize) }
    var total = Total()
    for (page, pin) in pins.enumerated() {
      total.attacked += 1
      let seen: UInt64 = pin.load()
      if seen == secret(page) { total.leaked += 1 }
      if seen == before(page) { total.kept += 1 }
      let own: UInt64 = try parent.load(fromByteOffset: page * parent.pageSize)
      if own != secret(page) { total.lost += 1 }
    }
    try parent.unmap()
    try space.close()
    return total
  }
}

/// Up to 16 letters, as they lie in memory.
struct CowText: CustomStringConvertible {
  let bytes: SIMD16<UInt8>

  init(_ text: String) {
    var bytes = SIMD16<UInt8>()
    for (index, byte) in text.utf8.prefix(16).enumerated() { bytes[index] = byte }
    self.bytes = bytes
  }

  init(bytes: SIMD16<UInt8>) { self.bytes = bytes }

  var description: String {
    String(decoding: (0..<16).map { bytes[$0] }.prefix { $0 != 0 }, as: UTF8.self)
  }
}
