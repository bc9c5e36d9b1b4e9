internal import PinKit

/// What a scene takes of the machine that some kernel, user or container may not give.
///
/// What a machine lacks is known before a scene begins, from its ``Capabilities``: then the scene is skipped. Where nothing is lacking the scene
/// has to work, and a refusal is PinKit's own.
enum DemoNeed: Hashable, Sendable {
  /// Regions at all: memory of the process, and memfds, whose rights can be changed.
  case memory
  /// First writes to such memory are noticed in that way.
  case mechanism(WriteTracking.Mechanism, Capabilities.MemoryKind)
  /// Regions over stores: their pages come in when they are touched.
  case stores
  /// Pages that are not mapped until they are opened, and a key in memory that is not swapped.
  case seals
  /// Memory that an io_uring keeps pinned.
  case fixedBuffers

  /// Every mechanism on that memory.
  static func all(_ memory: Capabilities.MemoryKind) -> [DemoNeed] {
    [.handlerThread, .inPlace, .asynchronous, .mprotect].map { .mechanism($0, memory) }
  }

  /// Those that can act at a first write.
  static func synchronous(_ memory: Capabilities.MemoryKind) -> [DemoNeed] {
    all(memory).filter { $0 != .mechanism(.asynchronous, memory) }
  }
}

extension Capabilities {
  /// The first of `needs` that this machine does not meet, in words; `nil` if it meets all of them.
  func lack(of needs: [DemoNeed]) -> String? { needs.lazy.compactMap(lack).first }

  private func lack(_ need: DemoNeed) -> String? {
    switch need {
    case .memory: lack(.mechanism(.mprotect, .anonymous)) ?? lack(.mechanism(.mprotect, .pool))
    case .mechanism(let mechanism, let memory):
      verdicts.first { $0.mechanism.rawValue == mechanism.rawValue && $0.memory == memory }.flatMap {
        $0.isAvailable ? nil : "\(mechanism.rawValue) on \(memory.rawValue) memory: \($0.reason)"
      }
    case .stores:
      lack(.mechanism(.handlerThread, .pool)) ?? lack("missing faults of a memfd", [.missingShmem], shmem.missing)
        ?? lack("minor faults of a memfd", [.minorShmem], shmem.minor)
    case .seals:
      lack(.mechanism(.handlerThread, .pool)) ?? lack("minor faults of a memfd", [.minorShmem], shmem.minor)
        ?? lackOfLockedMemory
    case .fixedBuffers: ioUring.didWork ? lackOfLockedMemory : "io_uring: \(ioUring)"
    }
  }

  private func lack(_ name: String, _ wanted: Userfaultfd.Features, _ attempt: Attempt) -> String? {
    guard features.isSuperset(of: wanted) else { return "\(name): the kernel lacks them" }
    return attempt.didWork ? nil : "\(name): \(attempt)"
  }

  /// What the demos take is below what any distribution allows.
  private var lackOfLockedMemory: String? {
    lockedMemory.soft.flatMap { $0 < 64 << 10 ? "locked memory: RLIMIT_MEMLOCK is \($0) bytes" : nil }
  }
}
