internal import Logging
internal import PinKit

/// One thing that is shown.
protocol DemoScene {
  var title: String { get }
  func run(on stage: DemoStage) throws -> DemoFindings
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

enum DemoScenes {
  /// Shows one after the other: one that this machine cannot do is skipped, and one that fails is a claim that does not hold.
  static func show(_ scenes: [any DemoScene], of demo: String, on stage: DemoStage) -> DemoResult {
    var found = DemoFindings()
    for scene in scenes {
      stage.title(scene.title)
      do { found += try scene.run(on: stage) } catch let error as PinError where error.meansCannot {
        stage.say("Skipped, as this machine cannot do it: \(error)")
        found.skipped.append(.init(subject: scene.title, reason: error.description))
      } catch {
        let claim = Claim(contract: "K3", claim: "\(scene.title): runs to the end", holds: false, evidence: "\(error)")
        stage.show([claim])
        found.claims.append(claim)
      }
    }
    let result = DemoResult(
      demo: demo, claims: found.claims, measurements: found.measurements, skipped: found.skipped)
    stage.conclude(result)
    return result
  }
}
