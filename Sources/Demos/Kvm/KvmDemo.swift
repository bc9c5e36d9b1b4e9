internal import Guest
internal import PinKit

/// A guest whose memory is a region: what it writes goes through translations that are not the process's own.
package struct KvmDemo: SceneDemo {
  package let name = "kvm"
  package let summary = "a guest in managed memory: its writes tracked, cut, copied and forbidden"

  /// Of the first scene, for each mechanism.
  private let rounds: Int
  /// Why no guest can run here; replaced by tests.
  var unavailable: @Sendable () -> String? = { GuestMachine.unavailable }

  package init(rounds: Int = 80) { self.rounds = rounds }

  let introduction =
    "A virtual machine of one processor runs a loop of six instructions, which stores numbers where it is told to. Its memory is a "
    + "region. The processor does not write through the page table of this process but through one of KVM's, which takes each "
    + "translation from the process at the guest's first touch and keeps it. So when PinKit protects a page, the kernel's notifiers "
    + "have to take it away there, too."

  var obstacle: String? { unavailable() }

  var scenes: [any DemoScene] {
    [KvmTrackScene(rounds: rounds), KvmSnapshotScene(), KvmCloneScene(), KvmChangeScene()]
  }
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
