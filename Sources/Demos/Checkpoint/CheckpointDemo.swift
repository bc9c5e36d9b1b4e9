internal import Dispatch
internal import PinKit
internal import Terminal

/// What PinKit is for, in less than a minute: the two halves of a checkpoint of memory that nobody stops to write.
package struct CheckpointDemo: Demo {
  package let name = "checkpoint"
  package let summary = "a live heap, tracked and saved without fork() while its writers go on"

  private let seconds: Double
  private let size: Int

  /// - Parameters:
  ///   - seconds: How long the writers of each half go on at least.
  ///   - size: Of the table that is saved, in MiB.
  package init(seconds: Double = 1.5, size: Int = 64) {
    self.seconds = seconds
    self.size = size
  }

  package func run(on stage: DemoStage) throws -> DemoResult {
    let begin = DispatchTime.now().uptimeNanoseconds
    stage.title("pinctl demo: \(summary)")
    var found = DemoFindings()
    stage.title("which pages are written")
    let mechanism = Self.mechanism(on: stage.machine)
    found.attempt("tracking", needing: [.memory, .mechanism(mechanism, .anonymous)], on: stage) {
      var track = TrackDemo()
      track.mechanisms = [mechanism]
      track.seconds = seconds
      $0 += try track.tell(track.plan(), on: stage)
    }
    stage.title("what they held at one moment")
    found.attempt("saving", needing: [.memory], on: stage) {
      var plan = SnapshotPlan(size: size, seconds: seconds / 3)
      plan.isBesideFork = false
      $0 += try SnapshotDemo(plan: plan).tell(on: stage)
    }
    let took = Double(DispatchTime.now().uptimeNanoseconds - begin) / 1e9
    found.measurements.append(.init(subject: name, name: "took", value: took, unit: "s"))
    stage.title("what was claimed")
    stage.list(found.claims)
    let result = found.conclude(name, on: stage)
    stage.say("It took \(took.rounded(to: 1)) s. `pinctl demo all` shows the rest, and this at greater length.")
    return result
  }

  /// The cheapest that there is here; the last of them if there is none.
  private static func mechanism(on machine: Capabilities) -> WriteTracking.Mechanism {
    let order: [WriteTracking.Mechanism] = [.asynchronous, .handlerThread, .mprotect]
    return order.first { machine.lack(of: [.mechanism($0, .anonymous)]) == nil } ?? .mprotect
  }
}
