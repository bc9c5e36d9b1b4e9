internal import Guest
internal import PinKit

/// A guest whose memory is a region: what it writes goes through translations that are not the process's own.
struct KvmDemo: Demo {
  let name = "kvm"
  let summary = "a guest in managed memory: its writes tracked, cut, copied and forbidden"

  /// Of the first scene, for each mechanism.
  var rounds = 80
  /// Why no guest can run here; replaced by tests.
  var unavailable: @Sendable () -> String? = { GuestMachine.unavailable }

  func run(on stage: DemoStage) throws -> DemoResult {
    stage.title("pinctl demo \(name): \(summary)")
    let scenes: [any KvmScene] = [
      KvmTrackScene(rounds: rounds), KvmSnapshotScene(), KvmCloneScene(), KvmChangeScene(),
    ]
    if let reason = unavailable() {
      stage.say("Skipped, as this machine cannot run a guest: \(reason)")
      return .skipped(name, scenes.map { .init(subject: $0.title, reason: reason) })
    }
    stage.say(
      "A virtual machine of one processor runs a loop of six instructions, which stores numbers where it is told to. Its memory is a "
        + "region. The processor does not write through the page table of this process but through one of KVM's, which takes each "
        + "translation from the process at the guest's first touch and keeps it. So when PinKit protects a page, the kernel's notifiers "
        + "have to take it away there, too.")
    var found = KvmFindings()
    for scene in scenes {
      stage.title(scene.title)
      do { try scene.run(on: stage, &found) } catch let error as PinError where error.meansCannot {
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
protocol KvmScene {
  var title: String { get }
  /// What was found before an error stays found.
  func run(on stage: DemoStage, _ found: inout KvmFindings) throws
}

/// What the scenes found.
struct KvmFindings {
  var claims: [Claim] = []
  var measurements: [DemoResult.Measurement] = []
  var skipped: [DemoResult.Skipped] = []
}

enum KvmMemory {
  /// Runs `body` on memory for a guest, and gives it up.
  static func with(_ backing: Backing, pages: Int, _ body: (Region) throws -> Void) throws {
    let space = try DemoSpace.make()
    do { try body(try space.map(backing, pages: pages)) } catch {
      try? space.close()
      throw error
    }
    try space.close()
  }

  /// The mechanisms that can act at a fault.
  static let synchronous: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .mprotect]
}
