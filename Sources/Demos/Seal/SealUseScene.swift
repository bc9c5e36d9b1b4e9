internal import Dispatch
internal import Glibc
internal import PinKit
internal import Terminal

/// One key after the other is used, and idle ones are sealed again: a picture of which pages are open.
struct SealUseScene: DemoScene {
  let title = "using a key opens its page"
  let needs: [DemoNeed] = [.seals]
  var keys = 24
  private let idleSeconds = 1.0

  struct Outcome {
    var uses = 0
    /// After which exactly the page of the key had become open.
    var alone = 0
    /// The key was what it was.
    var whole = 0
    var isSealedInTheEnd = false
    /// From the last use on.
    var seconds = 0.0
    /// Frames that are others now.
    var moved = 0
    /// Pages whose frame had the key while it was sealed.
    var plainFrames = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    let store = try SealKeyStore(SealNeedles(count: keys), SealingOptions(idleSeconds: idleSeconds))
    defer { try? store.space.close() }
    stage.say(
      "Here touching a page opens it, and pages that nobody has touched for \(idleSeconds) s are sealed again. A column for each key, a row for "
        + "each moment: · is sealed, █ is open.")
    stage.show()
    var outcome = Outcome()
    let frames = try store.pages.map { try store.region.frameState($0).frame }
    try store.region.seal(store.pages)
    for page in store.pages {
      let bytes = try store.rawBytes(page)
      if !(unsafe bytes.withUnsafeBytes { unsafe store.needles.found(in: $0) }).isEmpty { outcome.plainFrames += 1 }
    }
    let start = DispatchTime.now().uptimeNanoseconds
    func now() -> Double { Double(DispatchTime.now().uptimeNanoseconds - start) / 1e9 }
    func draw(_ what: String) throws {
      let row = try store.sealed.map { $0 ? "·" : "█" }.joined()
      stage.show("  \((now().rounded(to: 2) + " s").aligned(to: 7))  \(row)  \(what)")
    }
    try draw("all are sealed")
    for use in 0..<6 {
      let page = 1 + use * (keys / 6)
      let before = try store.sealed
      let isWhole = try store.isWhole(page)
      let after = try store.sealed
      // The timer may seal others meanwhile; nobody but the user opens.
      let opened = before.indices.filter { before[$0] && !after[$0] }
      outcome.uses += 1
      outcome.whole += isWhole ? 1 : 0
      outcome.alone += opened == [page - 1] ? 1 : 0
      try draw("key \(page) is used")
      usleep(60_000)
    }
    let last = now()
    let deadline = last + 20
    var shown = try store.sealed
    while now() < deadline, try store.sealed.contains(false) {
      usleep(5_000)
      let sealed = try store.sealed
      if sealed != shown { try draw("") }
      shown = sealed
    }
    outcome.seconds = now() - last
    outcome.isSealedInTheEnd = try !store.sealed.contains(false)
    outcome.moved = zip(frames, try store.pages.map { try store.region.frameState($0).frame }).count { $0 != $1 }
    try draw(outcome.isSealedInTheEnd ? "all are sealed again" : "some are still open")
    stage.show()
    let claims = Self.judge(outcome)
    stage.show(claims)
    return DemoFindings(
      claims: claims,
      measurements: [.init(subject: "idle", name: "sealed again after", value: outcome.seconds, unit: "s")])
  }

  static func judge(_ outcome: Outcome) -> [Claim] {
    [
      Claim(
        contract: "S1", claim: "using a key opens its page and no other, and the key is whole",
        holds: outcome.uses > 0 && outcome.alone == outcome.uses && outcome.whole == outcome.uses,
        evidence:
          "Of \(outcome.uses) uses \(outcome.alone) opened one page, the key's; \(outcome.whole) keys were what they were."),
      Claim(
        contract: "S5", claim: "pages that nobody uses are sealed again by themselves",
        holds: outcome.uses > 0 && outcome.isSealedInTheEnd,
        evidence:
          "\(outcome.isSealedInTheEnd ? "All" : "Not all") were sealed \(outcome.seconds.rounded(to: 2)) s after the last use."
      ),
      Claim(
        contract: "S4", claim: "a sealed page stays in its frame, whose bytes are others",
        holds: outcome.uses > 0 && outcome.moved == 0 && outcome.plainFrames == 0,
        evidence: "\(outcome.moved) frames changed; \(outcome.plainFrames) had a key in them while they were sealed."),
    ]
  }
}
