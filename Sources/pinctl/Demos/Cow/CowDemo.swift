internal import Logging
internal import PinKit

/// When a write may reuse a frame and when it must copy: what each rule leaks or costs, and what clones make of it.
struct CowDemo: Demo {
  let name = "cow"
  let summary = "shared frames: who may write in place, what each rule leaks or costs, and clones"

  /// Of the last scene.
  var clones = 24

  func run(on stage: DemoStage) throws -> DemoResult {
    stage.title("pinctl demo \(name): \(summary)")
    stage.say(
      "A clone of a region shares its frames. When either side writes a page, the frame may be written in place if nobody else has "
        + "it, and must be copied if somebody has. What \"has\" means is the rule, and there are several.")
    let scenes: [any CowScene] = [
      CowLeakScene(), CowKernelScene(), CowLookupScene(), CowDeviceScene(), CowCloneScene(cloneCount: clones),
    ]
    var found = CowFindings()
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
      demo: name, claims: found.claims, measurements: found.measurements, skipped: found.skipped)
    stage.conclude(result)
    return result
  }
}

/// One thing that is shown.
protocol CowScene {
  var title: String { get }
  func run(on stage: DemoStage) throws -> CowFindings
}

/// What a scene found.
struct CowFindings {
  var claims: [Claim] = []
  var measurements: [DemoResult.Measurement] = []
  var skipped: [DemoResult.Skipped] = []

  static func += (all: inout CowFindings, more: CowFindings) {
    all.claims += more.claims
    all.measurements += more.measurements
    all.skipped += more.skipped
  }
}

enum CowSpace {
  /// An address space that says nothing, and outlives a failure, which becomes a claim that does not hold.
  static func make() throws -> AddressSpace {
    var configuration = AddressSpace.Configuration()
    configuration.logger.logLevel = .error
    configuration.failurePolicy = .failRegion
    return try AddressSpace(configuration: configuration)
  }
}

/// A pin that can be kept in an array.
final class HeldPin {
  let pin: Pin
  init(_ pin: consuming Pin) { self.pin = pin }

  func load<Value: BitwiseCopyable>(as type: Value.Type = Value.self) -> Value {
    unsafe pin.withUnsafeBytes { unsafe $0.load(as: type) }
  }

  func store<Value: BitwiseCopyable>(_ value: Value) throws {
    unsafe try pin.withUnsafeMutableBytes { unsafe $0.storeBytes(of: value, as: Value.self) }
  }
}

/// A lookup's reference that can be kept in an array.
final class HeldReference {
  let reference: FrameReference
  init(_ reference: consuming FrameReference) { self.reference = reference }
}
