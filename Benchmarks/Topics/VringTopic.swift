import PinKit
import Virtqueue

/// A split virtqueue in a region: what a device pays for each descriptor, by each way to the rings.
enum VringTopic: BenchTopic {
  static let name = "vring"

  static func check() throws {}

  static let rows: [BenchRow] = [
    BenchRow("vring/checked", unit: "ns/descriptor", goal: .reported, floor: "a plain C device on the same rings") {
      try serve($0) { CheckedRingMemory($0) }
    }
  ]

  /// The time of the device alone: takes chains of two descriptors, 16 at a time, checks them, and puts them into the used ring. The
  /// buffers are not touched. A C driver refills the queue between passes, and is in no figure.
  private static func serve<Rings: RingMemory>(
    _ plan: BenchPlan, by access: (Region) throws -> Rings
  ) throws -> BenchContest {
    let memory = FloorMemory(pages: 16)
    let region = try AddressSpace().adopt(AddressRange(start: UInt(memory.base), count: memory.pages * 4096))
    let layout = try VirtqueueLayout(size: 1024, in: region.byteCount)
    let rings = try access(region)
    let passes = plan.pages(1024)
    return BenchContest {
      var device = VirtqueueDevice(layout, rings, buffers: region)
      return try time(memory, layout, passes) { _ in
        var descriptors = 0
        while try device.serve(limit: 16, { request throws(PinError) in descriptors += request.bufferCount }) > 0 {}
        return descriptors
      }
    } floor: {
      try time(memory, layout, passes) { try $0.serve() }
    }
  }

  /// ns a descriptor.
  private static func time(
    _ memory: FloorMemory, _ layout: VirtqueueLayout, _ passes: Int, _ serve: (inout FloorRing) throws -> Int
  ) throws -> Double {
    var ring = FloorRing(memory, layout)
    ring.start()
    var time: UInt64 = 0
    var descriptors = 0
    for _ in 0..<passes {
      ring.post()
      let start = nanoseconds()
      descriptors += try serve(&ring)
      time += nanoseconds() - start
    }
    let chains = passes * ring.chains
    guard descriptors == 2 * chains, ring.used() == UInt16(truncatingIfNeeded: chains) else {
      throw BenchFault(description: "\(descriptors) descriptors were served where \(2 * chains) were posted")
    }
    return Double(time) / Double(descriptors)
  }
}
