internal import PinKit
internal import Terminal

/// A virtqueue in a region: served while the region changes, and fed garbage.
package struct VringDemo: SceneDemo {
  package let name = "vring"
  package let summary = "a virtqueue in memory that does not hold still, and a driver that lies"

  private let seconds: Double
  private let rounds: Int

  package init(seconds: Double = 3, rounds: Int = 20_000) {
    self.seconds = seconds
    self.rounds = rounds
  }

  let introduction =
    "A driver posts chains of buffers in a ring, a device serves them: the rings and the buffers lie in one region. They reach the "
    + "rings by the checked accessors, and then once more by direct mappings, so the region may be cloned, snapshotted, protected and discarded at any moment."

  var scenes: [any DemoScene] {
    VringExchange.Way.allCases.map { VringExchangeScene(way: $0, seconds: seconds) } + [VringGarbageScene(rounds: rounds)]
  }
}

struct VringExchangeScene: DemoScene {
  let needs: [DemoNeed] = [.mechanism(.handlerThread, .pool)]
  let way: VringExchange.Way
  let seconds: Double

  var title: String {
    switch way {
    case .checked: "a driver, a device, and two threads that change the region"
    case .direct: "the same, with the rings mapped directly"
    }
  }

  private var story: String {
    switch way {
    case .checked:
      "For \(seconds.rounded(to: 1)) s: every chain carries a number and a checksum, and so does the device's answer. One thread "
        + "clones, snapshots, collects a tracker and discards what no descriptor uses; another takes the rights to pages of the "
        + "rings and buffers away and gives them back: who is denied tries again."
    case .direct:
      "A window onto the rings' pages, at an address of its own. A change takes it down before it happens and waits for whoever is "
        + "inside; the next batch puts it up again, with write faults for its pages."
    }
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(story)
    let outcome = try VringExchange.perform(seconds: seconds, way: way)
    stage.draw(VringPicture.lines(outcome, stage))
    return DemoFindings(
      showing: VringClaims.judge(outcome, way), VringClaims.measurements(outcome, way), on: stage)
  }
}

struct VringGarbageScene: DemoScene {
  let title = "a driver that breaks the protocol"
  let rounds: Int

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "The region lies between two guards of known content. First each kind of garbage by itself, behind a chain that is good; then "
        + "\(rounds.grouped) rings whose every field is random to a degree.")
    let outcome = try VringGarbage.perform(rounds: rounds)
    stage.draw(VringPicture.lines(outcome, stage))
    return DemoFindings(showing: VringClaims.judge(outcome), VringClaims.measurements(outcome), on: stage)
  }
}
