internal import Logging
internal import PinKit

/// A virtqueue in a region: served while the region changes, and fed garbage.
struct VringDemo: Demo {
  let name = "vring"
  let summary = "a virtqueue in memory that does not hold still, and a driver that lies"

  var seconds = 3.0
  var rounds = 20_000

  func run(on stage: DemoStage) throws -> DemoResult {
    stage.title("pinctl demo \(name): \(summary)")
    stage.say(
      "A driver posts chains of buffers in a ring, a device serves them: the rings and the buffers lie in one region. They reach the "
        + "rings by the checked accessors, and then once more by direct mappings, so the region may be cloned, snapshotted, protected and discarded at any moment."
    )
    var claims: [Claim] = []
    var measurements: [DemoResult.Measurement] = []
    var skipped: [DemoResult.Skipped] = []
    for scene in Scene.allCases {
      stage.title(scene.rawValue)
      do {
        let (found, measured) = try show(scene, on: stage)
        stage.show()
        stage.show(found)
        claims += found
        measurements += measured
      } catch let error as PinError where error.meansCannot {
        stage.say("Skipped, as this machine cannot do it: \(error)")
        skipped.append(.init(subject: scene.rawValue, reason: error.description))
      }
    }
    let result = DemoResult(demo: name, claims: claims, measurements: measurements, skipped: skipped)
    stage.conclude(result)
    return result
  }

  private enum Scene: String, CaseIterable {
    case exchange = "a driver, a device, and two threads that change the region"
    case direct = "the same, with the rings mapped directly"
    case garbage = "a driver that breaks the protocol"
  }

  private func show(_ scene: Scene, on stage: DemoStage) throws -> ([Claim], [DemoResult.Measurement]) {
    switch scene {
    case .exchange:
      stage.say(
        "For \(seconds.rounded(to: 1)) s: every chain carries a number and a checksum, and so does the device's answer. One thread "
          + "clones, snapshots, collects a tracker and discards what no descriptor uses; another takes the rights to pages of the "
          + "rings and buffers away and gives them back: who is denied tries again.")
      let outcome = try VringExchange.perform(seconds: seconds)
      stage.show()
      for line in VringPicture.lines(outcome, stage) { stage.show(line) }
      return (VringClaims.judge(outcome), VringClaims.measurements(outcome))
    case .direct:
      stage.say(
        "A window onto the rings' pages, at an address of its own. A change takes it down before it happens and waits for whoever is "
          + "inside; the next batch puts it up again, with write faults for its pages.")
      let outcome = try VringExchange.perform(seconds: seconds, way: .direct)
      stage.show()
      for line in VringPicture.lines(outcome, stage) { stage.show(line) }
      return (VringClaims.judge(outcome, .direct), VringClaims.measurements(outcome, .direct))
    case .garbage:
      stage.say(
        "The region lies between two guards of known content. First each kind of garbage by itself, behind a chain that is good; then "
          + "\(rounds.grouped) rings whose every field is random to a degree.")
      let outcome = try VringGarbage.perform(rounds: rounds)
      stage.show()
      for line in VringPicture.lines(outcome, stage) { stage.show(line) }
      return (VringClaims.judge(outcome), VringClaims.measurements(outcome))
    }
  }
}

enum VringSpace {
  /// An address space that says nothing, and outlives a failure.
  static func make() throws -> AddressSpace {
    var configuration = AddressSpace.Configuration()
    configuration.logger.logLevel = .error
    configuration.failurePolicy = .failRegion
    return try AddressSpace(configuration: configuration)
  }
}
