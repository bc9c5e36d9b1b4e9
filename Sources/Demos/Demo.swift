/// Something that PinKit does, shown on real memory and judged while it is shown.
package protocol Demo: Sendable {
  /// What it is called on the command line.
  var name: String { get }
  /// One line.
  var summary: String { get }
  /// Shows it on `stage` and returns what was found. Blocks until it is over.
  ///
  /// Throws what stops it from being shown at all; what goes wrong while it is shown is a claim that does not hold.
  func run(on stage: DemoStage) throws -> DemoResult
}

/// The demos that there are.
package enum DemoCatalogue {
  /// All, in the order in which `pinctl demo all` shows them, but for ``CheckpointDemo``, which is made of two of them.
  package static var all: [any Demo] {
    [
      TrackDemo(), CowDemo(), SnapshotDemo(), NotifyDemo(), GupDemo(), FileDemo(), VringDemo(), KvmDemo(), SealDemo(),
      BesideDemo(),
    ]
  }

  /// One demo that cannot be shown does not keep the others from being shown.
  package static func show(_ demo: any Demo, on stage: DemoStage) -> DemoResult {
    do { return try demo.run(on: stage) } catch {
      let claim = Claim(contract: "-", claim: "\(demo.name) can be shown here", holds: false, evidence: "\(error)")
      stage.show([claim])
      return DemoResult(demo: demo.name, claims: [claim])
    }
  }
}

/// A sentence about PinKit, and whether it was true in this run.
package struct Claim: Codable, Hashable, Sendable {
  /// The contract that it is about: `W5`.
  var contract: String
  var claim: String
  /// Computed from what happened.
  var holds: Bool
  /// What was counted, and where it first went wrong.
  var evidence: String
}

/// What a demo found. As JSON: `{"demo", "claims": [{"contract", "claim", "holds", "evidence"}], "measurements", "ok", "skipped"}`.
package struct DemoResult: Codable, Sendable {
  package struct Measurement: Codable, Hashable, Sendable {
    var subject: String
    var name: String
    var value: Double
    var unit: String
  }
  /// What was not shown, and what this machine lacks for it.
  package struct Skipped: Codable, Hashable, Sendable {
    var subject: String
    var reason: String
  }

  var demo: String
  var claims: [Claim]
  var measurements: [Measurement]
  /// Every claim holds, and there is one at least, unless the machine can show none of it.
  package var ok: Bool
  var skipped: [Skipped]

  init(demo: String, claims: [Claim], measurements: [Measurement] = [], skipped: [Skipped] = []) {
    self.demo = demo
    self.claims = claims
    self.measurements = measurements
    self.skipped = skipped
    ok = !(claims.isEmpty && skipped.isEmpty) && claims.allSatisfy(\.holds)
  }

  /// Of a demo that this machine cannot show at all, which is no failure.
  static func skipped(_ demo: String, _ skipped: [Skipped]) -> DemoResult {
    DemoResult(demo: demo, claims: [], skipped: skipped)
  }
}
