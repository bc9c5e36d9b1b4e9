import Foundation
import PinKit
import Synchronization
import Virtqueue

/// A split virtqueue in a region: what a device pays for each descriptor, by each way to the rings.
enum VringTopic: BenchTopic {
  static let name = "vring"

  static func check() throws {}

  static let rows: [BenchRow] = [
    BenchRow("vring/checked", unit: "ns/descriptor", goal: .reported, floor: "a plain C device on the same rings") {
      try serve($0) { region, _ in CheckedRingMemory(region) }
    },
    BenchRow("vring/direct", unit: "ns/descriptor", goal: .ratio(1 / 1.24), floor: "PinKit's checked accessors") {
      try compare($0, disturbed: false)
    },
    BenchRow(
      "vring/direct-disturbed", unit: "ns/descriptor", goal: .ratio(1), floor: "PinKit's checked accessors, disturbed too"
    ) {
      try compare($0, disturbed: true)
    },
  ]

  /// Both ways to the rings of one region: nobody else is there, or a thread that collects and protects the rings' pages all the time.
  private static func compare(_ plan: BenchPlan, disturbed: Bool) throws -> BenchContest {
    let memory = FloorMemory(pages: 16)
    let region = try AddressSpace().adopt(AddressRange(start: UInt(memory.base), count: memory.pages * 4096))
    let layout = try VirtqueueLayout(size: 1024, in: region.byteCount)
    let passes = plan.pages(1024)
    let direct = try DirectRingMemory(region, layout)
    func side(_ rings: some RingMemory) throws -> Double {
      let disturbance = disturbed ? try Disturbance(region) : nil
      defer { disturbance?.end() }
      var device = VirtqueueDevice(layout, rings, buffers: region)
      return try time(memory, layout, passes) { _ in
        var descriptors = 0
        while try device.serve(limit: 16, { request throws(PinError) in descriptors += request.bufferCount }) > 0 {}
        return descriptors
      }
    }
    return BenchContest {
      try side(direct)
    } floor: {
      try side(CheckedRingMemory(region))
    }
  }

  /// A thread that collects what was written a thousand times a second, which invalidates every mapping of the written pages.
  private final class Disturbance: Sendable {
    private let isOver = Atomic<Bool>(false)
    private let group = DispatchGroup()

    init(_ region: Region) throws {
      let tracker = try region.trackWrites(.handlerThread)
      group.enter()
      let thread = Thread { [self] in
        while !isOver.load(ordering: .acquiring) {
          _ = try? tracker.collect()
          usleep(1000)
        }
        try? tracker.stop()
        group.leave()
      }
      thread.start()
    }

    func end() {
      isOver.store(true, ordering: .releasing)
      group.wait()
    }
  }

  /// The time of the device alone: takes chains of two descriptors, 16 at a time, checks them, and puts them into the used ring. The
  /// buffers are not touched. A C driver refills the queue between passes, and is in no figure.
  private static func serve<Rings: RingMemory>(
    _ plan: BenchPlan, by access: (Region, VirtqueueLayout) throws -> Rings
  ) throws -> BenchContest {
    let memory = FloorMemory(pages: 16)
    let region = try AddressSpace().adopt(AddressRange(start: UInt(memory.base), count: memory.pages * 4096))
    let layout = try VirtqueueLayout(size: 1024, in: region.byteCount)
    let rings = try access(region, layout)
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
