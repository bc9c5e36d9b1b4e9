internal import Logging
internal import PinKit

/// One thing that is shown.
protocol DemoScene {
  var title: String { get }
  /// What it takes of the machine. Where that is there, whatever refuses it is a claim that does not hold.
  var needs: [DemoNeed] { get }
  func run(on stage: DemoStage) throws -> DemoFindings
}

extension DemoScene {
  var needs: [DemoNeed] { [.memory] }
}

/// What a scene found.
struct DemoFindings {
  var claims: [Claim] = []
  var measurements: [DemoResult.Measurement] = []
  var skipped: [DemoResult.Skipped] = []

  static func += (all: inout DemoFindings, more: DemoFindings) {
    all.claims += more.claims
    all.measurements += more.measurements
    all.skipped += more.skipped
  }

  /// Adds what `body` finds, and keeps that whatever comes after. It is skipped where the machine lacks what it needs, as is known
  /// before; on any other, a failure is a claim that does not hold, a refusal no less than the rest.
  mutating func attempt(
    _ subject: String, needing needs: [DemoNeed], on stage: DemoStage, _ body: (inout DemoFindings) throws -> Void
  ) {
    if let lack = stage.machine.lack(of: needs) {
      stage.say("\(subject) is skipped, as this machine lacks it: \(lack)")
      skipped.append(.init(subject: subject, reason: lack))
      return
    }
    do { try body(&self) } catch {
      let claim = Claim(contract: "K3", claim: "\(subject): runs to the end", holds: false, evidence: "\(error)")
      stage.show([claim])
      claims.append(claim)
    }
  }

  /// What a demo of that name came to.
  func conclude(_ demo: String, on stage: DemoStage) -> DemoResult {
    let result = DemoResult(demo: demo, claims: claims, measurements: measurements, skipped: skipped)
    stage.conclude(result)
    return result
  }
}

extension DemoFindings {
  /// Claims, which are shown, and what was measured.
  init(showing claims: [Claim], _ measurements: [DemoResult.Measurement] = [], on stage: DemoStage) {
    stage.show(claims)
    self.init(claims: claims, measurements: measurements)
  }
}

enum DemoSpace {
  /// An address space that says nothing, and outlives a failure, which becomes a claim that does not hold.
  ///
  /// - Parameter expectsFailures: Those that are provoked are no news, and are not logged.
  static func make(expectsFailures: Bool = false) throws -> AddressSpace {
    var configuration = AddressSpace.Configuration()
    configuration.logger.logLevel = expectsFailures ? .critical : .error
    configuration.failurePolicy = .failRegion
    return try AddressSpace(configuration: configuration)
  }
}

/// A demo that shows one scene after the other.
protocol SceneDemo: Demo {
  /// What it is about, before the first scene.
  var introduction: String { get }
  var scenes: [any DemoScene] { get }
  /// Why this machine can show none of them; `nil` if it may.
  var obstacle: String? { get }
}

extension SceneDemo {
  var obstacle: String? { nil }

  package func run(on stage: DemoStage) throws -> DemoResult {
    stage.title("pinctl demo \(name): \(summary)")
    if let obstacle {
      stage.say("Skipped, as this machine lacks it: \(obstacle)")
      return .skipped(name, scenes.map { .init(subject: $0.title, reason: obstacle) })
    }
    stage.say(introduction)
    var found = DemoFindings()
    for scene in scenes {
      stage.title(scene.title)
      found.attempt(scene.title, needing: scene.needs, on: stage) { $0 += try scene.run(on: stage) }
    }
    return found.conclude(name, on: stage)
  }
}
