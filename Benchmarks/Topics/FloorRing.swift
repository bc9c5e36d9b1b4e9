internal import CFloor
import Virtqueue

/// A split virtqueue in memory of the floor: its driver serves both sides, its device is the floor.
struct FloorRing {
  private var ring: cfloor_vring
  private var next: UInt16 = 0
  /// Chains that ``post()`` makes available.
  let chains: Int

  init(_ memory: FloorMemory, _ layout: VirtqueueLayout) {
    ring = cfloor_vring(
      memory: memory.base, bytes: UInt64(memory.pages * 4096), descriptors: UInt64(layout.descriptors.lowerBound),
      available: UInt64(layout.available.lowerBound), used: UInt64(layout.used.lowerBound), size: UInt32(layout.size))
    chains = layout.size / 2
  }

  /// Clears the rings and fills the table with chains of two.
  mutating func start() {
    next = 0
    unsafe cfloor_vring_start(&ring)
  }

  /// Makes every chain available; the device must have used the ones before.
  mutating func post() { unsafe cfloor_vring_post(&ring) }

  /// Serves what there is; how many descriptors.
  mutating func serve() throws -> Int {
    let served = unsafe cfloor_vring_serve(&ring, &next)
    guard served >= 0 else { throw BenchFault(description: "the floor's device failed with errno \(-served)") }
    return Int(served)
  }

  /// How many chains the device has used since the start, as far as 16 bits tell.
  mutating func used() -> UInt16 { unsafe cfloor_vring_used(&ring) }
}
