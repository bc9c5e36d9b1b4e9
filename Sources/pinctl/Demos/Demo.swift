internal import PinKit

/// Something that PinKit does, shown on real memory and judged while it is shown.
protocol Demo: Sendable {
  /// What it is called on the command line.
  var name: String { get }
  /// One line.
  var summary: String { get }
  /// Shows it on `stage` and returns what was found. Blocks until it is over.
  ///
  /// Throws what stops it from being shown at all; what goes wrong while it is shown is a claim that does not hold.
  func run(on stage: DemoStage) throws -> DemoResult
}

enum Demos {
  /// All there are, in the order in which `pinctl demo` shows them.
  static var all: [any Demo] {
    [
      TrackDemo(), CowDemo(), SnapshotDemo(), NotifyDemo(), GupDemo(), FileDemo(), VringDemo(), KvmDemo(), SealDemo(),
      BesideDemo(),
    ]
  }
}

/// A sentence about PinKit, and whether it was true in this run.
struct Claim: Codable, Hashable, Sendable {
  /// The contract that it is about: `W5`.
  var contract: String
  var claim: String
  /// Computed from what happened.
  var holds: Bool
  /// What was counted, and where it first went wrong.
  var evidence: String
}

/// What a demo found. As JSON: `{"demo", "claims": [{"contract", "claim", "holds", "evidence"}], "measurements", "ok", "skipped"}`.
struct DemoResult: Codable, Sendable {
  struct Measurement: Codable, Hashable, Sendable {
    var subject: String
    var name: String
    var value: Double
    var unit: String
  }
  /// What this machine cannot do, and the reason it gave.
  struct Skipped: Codable, Hashable, Sendable {
    var subject: String
    var reason: String
  }

  var demo: String
  var claims: [Claim]
  var measurements: [Measurement]
  /// Every claim holds, and there is one at least, unless the machine cannot show the demo at all.
  var ok: Bool
  var skipped: [Skipped]

  init(demo: String, claims: [Claim], measurements: [Measurement] = [], skipped: [Skipped] = []) {
    self.demo = demo
    self.claims = claims
    self.measurements = measurements
    self.skipped = skipped
    ok = !claims.isEmpty && claims.allSatisfy(\.holds)
  }

  /// Of a demo that this machine cannot show at all, which is no failure.
  static func skipped(_ demo: String, _ skipped: [Skipped]) -> DemoResult {
    var result = DemoResult(demo: demo, claims: [], skipped: skipped)
    result.ok = true
    return result
  }
}

extension PinError {
  /// Whether it says that this machine cannot do what was asked, rather than that something went wrong.
  var meansCannot: Bool { [.unsupported, .permissionDenied, .limitReached].contains(code) }
}
