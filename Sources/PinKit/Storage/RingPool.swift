internal import Synchronization

/// The rings of a store: each writing thread takes one and gives it back, so that none waits for another's.
final class RingPool: Sendable {
  /// Operations in flight at a time.
  static let depth = 64

  private final class Slot: Sendable {
    let ring = Mutex<SubmissionRing?>(nil)
  }
  private let slots = (0..<4).map { _ in Slot() }
  /// Seen late, the kernel is asked once more, and says the same.
  private let isForbidden = Atomic(false)

  /// `nil` where the process may have none.
  func take() -> SubmissionRing? {
    guard !isForbidden.load(ordering: .relaxed) else { return nil }
    for slot in slots {
      // What a child of fork() finds here is the parent's, and is dropped.
      if let ring = slot.ring.withLock({ $0.take() }), ring.forkGeneration == Kernel.forkGeneration { return ring }
    }
    do throws(PinError) { return try SubmissionRing(entries: Self.depth) } catch {
      // A seccomp filter or a sysctl says the same next time; a lack of memory or descriptors may pass.
      if error.code == .permissionDenied || error.code == .unsupported { isForbidden.store(true, ordering: .relaxed) }
      return nil
    }
  }

  /// One that is too many is closed.
  func give(_ ring: consuming SubmissionRing) {
    guard ring.forkGeneration == Kernel.forkGeneration else { return }
    var ring: SubmissionRing? = ring
    for slot in slots {
      slot.ring.withLock { if $0 == nil { swap(&$0, &ring) } }
      if ring == nil { return }
    }
  }
}
