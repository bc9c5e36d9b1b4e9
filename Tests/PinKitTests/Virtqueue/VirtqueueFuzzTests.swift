@testable import PinKit
import Testing
import Virtqueue

/// What a device must make of ring memory, told once more and plainly.
private struct Oracle {
  var heads: [UInt16] = []
  var violation: VirtqueueViolation?
  /// A chain lets the device write over the rings: what comes after depends on what it writes.
  var isUnpredictable = false

  init(_ table: [VirtqueueDescriptor], _ ring: [UInt16], index: UInt16, byteCount: Int, rings: Range<Int>) {
    let size = table.count
    if Int(index) > size {
      violation = .availableIndexJumped(from: 0, to: index)
      return
    }
    for head in ring.prefix(Int(index)) {
      violation = Self.walk(table, head, byteCount, rings, &isUnpredictable)
      if violation != nil { return }
      heads.append(head)
    }
  }

  private static func walk(
    _ table: [VirtqueueDescriptor], _ head: UInt16, _ byteCount: Int, _ rings: Range<Int>, _ overwrites: inout Bool
  ) -> VirtqueueViolation? {
    var path: [UInt16] = [head]
    if Int(head) >= table.count { return .headOutOfRange(head) }
    var wrote = false
    var writes: [Range<Int>] = []
    while true {
      let index = path[path.count - 1]
      let entry = table[Int(index)]
      if entry.flags.rawValue & 4 != 0 { return .indirect(descriptor: index) }
      let (end, overflows) = entry.address.addingReportingOverflow(UInt64(entry.length))
      if overflows || end > UInt64(byteCount) {
        return .outsideMemory(descriptor: index, address: entry.address, length: entry.length)
      }
      let isWritable = entry.flags.rawValue & 2 != 0
      if wrote && !isWritable { return .readableAfterWritable(descriptor: index) }
      wrote = wrote || isWritable
      if isWritable { writes.append(Int(entry.address)..<Int(end)) }
      if entry.flags.rawValue & 1 == 0 { break }
      if Int(entry.next) >= table.count { return .nextOutOfRange(descriptor: index, next: entry.next) }
      path.append(entry.next)
      if path.count > table.count { return .chainTooLong(head: head) }
    }
    overwrites = overwrites || writes.contains { $0.overlaps(rings) }
    return nil
  }
}

@Suite("A driver that writes at random") struct VirtqueueFuzzTests {
  @Test("Every round ends as the protocol says, and nothing outside the region is touched", arguments: 1...4)
  func fuzz(seed: UInt64) throws {
    var random = SeededRandom(seed: Seed.base &+ seed)
    let memory = try GuardedMemory(pages: 8)
    let region = memory.region
    var (compared, good, kinds) = (0, 0, Set<String>())
    for round in 0..<1500 {
      let size = 1 << Int.random(in: 0...6, using: &random)
      let offset = 64 * Int.random(in: 0...64, using: &random)
      let layout = try VirtqueueLayout(size: size, at: offset, in: region.byteCount)
      let driver = HostileDriver(region: region, layout: layout)
      // From tame to wild.
      let wildness = [0, 1, 3, 10, 50, 100].randomElement(using: &random) ?? 0
      let table = (0..<size).map { Self.descriptor($0, size, region.byteCount, layout, wildness, &random) }
      let index = random.chance(wildness) ? random.word() : UInt16.random(in: 0...UInt16(size), using: &random)
      let ring = (0..<size).map { _ in
        random.chance(wildness) ? random.word() : UInt16.random(in: 0..<UInt16(size), using: &random)
      }
      for (place, descriptor) in table.enumerated() { try driver.describe(place, descriptor) }
      try region.storeReleasing(0, toByteOffset: layout.usedIndex)
      try driver.offer(ring, index: index)

      let log = AccessLog()
      var device = VirtqueueDevice(
        layout, RecordingRings(region, log), buffers: RecordingBuffers(region: region, log: log))
      let (served, violation) = Self.run(&device, limit: Int.random(in: 1...20, using: &random))
      #expect(served <= 4 * size)
      for event in log.events {
        let isRing = ![.read, .write].contains(event.kind)
        let limits = isRing ? layout.bytes : 0..<region.byteCount
        if event.offset < limits.lowerBound || event.end > limits.upperBound {
          Issue.record("seed \(seed), round \(round): \(event), outside \(limits)")
          return
        }
      }
      let oracle = Oracle(table, ring, index: index, byteCount: region.byteCount, rings: layout.bytes)
      guard !oracle.isUnpredictable else { continue }
      compared += 1
      Tally.add(.checks)
      if oracle.violation == nil { good += 1 } else { kinds.insert(Self.kind(oracle.violation)) }
      guard violation == oracle.violation, try driver.used().map({ UInt16($0.id) }) == oracle.heads else {
        Issue.record(
          "seed \(seed), round \(round): \(String(describing: violation)) after \(try driver.used()), where \(oracle) is right"
        )
        return
      }
    }
    #expect(memory.isIntact)
    #expect(compared > 700 && good > 50, "\(compared) rounds compared, \(good) of them good")
    #expect(kinds.count == 7, "\(kinds.sorted())")
    try memory.close()
  }

  /// Serves until nothing more comes, or the queue is broken, or the driver has written over its rings for too long.
  private static func run(
    _ device: inout VirtqueueDevice<RecordingRings, RecordingBuffers>, limit: Int
  ) -> (served: Int, VirtqueueViolation?) {
    var served = 0
    do throws(VirtqueueError) {
      while served <= 3 * device.layout.size {
        let count = try device.serve(limit: limit) { request throws(PinError) in _ = try request.drain() }
        guard count > 0 else { return (served, nil) }
        served += count
      }
    } catch {
      if case .needsReset(let violation) = error { return (served, violation) }
      Issue.record("\(error)")
    }
    return (served, nil)
  }

  private static func descriptor(
    _ index: Int, _ size: Int, _ byteCount: Int, _ layout: VirtqueueLayout, _ wildness: Int, _ random: inout SeededRandom
  ) -> VirtqueueDescriptor {
    // Tame: one or two buffers behind the rings.
    let start = layout.bytes.upperBound
    var made = VirtqueueDescriptor(
      address: UInt64.random(in: UInt64(start)..<UInt64(byteCount - 256), using: &random),
      length: UInt32.random(in: 0...256, using: &random), flags: random.chance(50) ? .write : [])
    if random.chance(20), index + 1 < size {
      made.flags.insert(.next)
      made.next = UInt16(index + 1)
    }
    if random.chance(wildness) {
      let edges = [0, UInt64(byteCount), UInt64(byteCount) - 1, .max, .max - 255, 1 << 63, 1 << 32]
      made.address = edges.randomElement(using: &random) ?? random.next()
    }
    if random.chance(wildness) {
      made.length = [0, 1, UInt32(byteCount), UInt32(byteCount) + 1, .max, 1 << 31].randomElement(using: &random) ?? 0
    }
    if random.chance(wildness) { made.flags = .init(rawValue: random.word()) }
    if random.chance(wildness) {
      made.flags.insert(.next)
      made.next = [UInt16(size), UInt16(index), .max, UInt16(size - 1), random.word()].randomElement(using: &random) ?? 0
    }
    return made
  }

  private static func kind(_ violation: VirtqueueViolation?) -> String {
    violation.flatMap { Mirror(reflecting: $0).children.first?.label } ?? "none"
  }
}

extension SeededRandom {
  fileprivate mutating func word() -> UInt16 { UInt16(truncatingIfNeeded: next()) }
}
