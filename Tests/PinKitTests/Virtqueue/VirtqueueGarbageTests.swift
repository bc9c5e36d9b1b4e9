@testable import PinKit
import Testing
import Virtqueue

/// One kind of garbage each: the device says what it is, serves nothing of it, and touches nothing else.
@Suite("A driver that breaks the protocol") struct VirtqueueGarbageTests {
  private typealias D = VirtqueueDescriptor
  private static let size = 8
  private static let end = UInt64(4 * 4096)

  /// Writes `table`, offers `heads`, and returns what the device makes of it.
  private func answer(
    _ table: [Int: VirtqueueDescriptor], _ heads: [UInt16], index: UInt16? = nil, served: [UInt32] = [],
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws -> VirtqueueViolation? {
    let memory = try GuardedMemory(pages: 4)
    let layout = try VirtqueueLayout(size: Self.size, in: memory.region.byteCount)
    let log = AccessLog()
    let driver = HostileDriver(region: memory.region, layout: layout)
    for (index, descriptor) in table { try driver.describe(index, descriptor) }
    try driver.offer(heads, index: index)
    var device = VirtqueueDevice(
      layout, RecordingRings(memory.region, log), buffers: RecordingBuffers(region: memory.region, log: log))
    var violation: VirtqueueViolation?
    for _ in 0..<4 where violation == nil {
      do throws(VirtqueueError) { _ = try device.serve { request throws(PinError) in _ = try request.drain() } } catch {
        if case .needsReset(let found) = error { violation = found } else { Issue.record("\(error)") }
      }
    }
    #expect(try driver.used().map(\.id) == served, sourceLocation: sourceLocation)
    #expect(device.violation == violation, sourceLocation: sourceLocation)
    // A good chain does not wake it up again.
    try driver.describe(0, .init(address: 1024, length: 4))
    try driver.offer([0, 0, 0], index: 3)
    if let violation {
      let again = queueError { () throws(VirtqueueError) in _ = try device.serve { _ throws(PinError) in } }
      #expect(again == .needsReset(violation), sourceLocation: sourceLocation)
    }
    #expect(try driver.used().map(\.id) == served, sourceLocation: sourceLocation)
    // No chain has more descriptors than the table.
    let looked = log.of(.load).count { layout.descriptors.contains($0.offset) }
    #expect(looked <= Self.size * heads.count, sourceLocation: sourceLocation)
    // Rings by their own layout, buffers inside the region, and nothing beside it.
    for event in log.events {
      let isRing = ![.read, .write].contains(event.kind)
      let limits = isRing ? layout.bytes : 0..<memory.region.byteCount
      #expect(
        event.offset >= limits.lowerBound && event.end <= limits.upperBound, "\(event)", sourceLocation: sourceLocation)
    }
    #expect(memory.isIntact, sourceLocation: sourceLocation)
    try memory.close()
    return violation
  }

  @Test("An available index that jumps by more than the queue size") func indexForward() throws {
    #expect(try answer([0: .init(address: 0, length: 4)], [0], index: 9) == .availableIndexJumped(from: 0, to: 9))
  }

  @Test("An available index that goes back") func indexBack() throws {
    #expect(try answer([:], [0], index: .max) == .availableIndexJumped(from: 0, to: .max))
  }

  @Test("As many chains as the queue has entries are none too many") func fullQueue() throws {
    let table = Dictionary(uniqueKeysWithValues: (0..<8).map { ($0, D(address: 1024, length: 4)) })
    #expect(try answer(table, Array(0..<8), served: Array(0..<8)) == nil)
  }

  @Test("A head that the table does not have", arguments: [8, 9, 0x7fff, .max] as [UInt16])
  func head(_ head: UInt16) throws {
    #expect(try answer([:], [head]) == .headOutOfRange(head))
  }

  @Test("A next that the table does not have", arguments: [8, 0x8000, .max] as [UInt16])
  func next(_ next: UInt16) throws {
    let found = try answer([3: .init(address: 1024, length: 4, flags: .next, next: next)], [3])
    #expect(found == .nextOutOfRange(descriptor: 3, next: next))
  }

  @Test("A next that is out of range and not asked for is nobody's business") func unusedNext() throws {
    #expect(try answer([3: .init(address: 1024, length: 4, next: .max)], [3], served: [3]) == nil)
  }

  @Test("A chain that is its own tail") func selfLoop() throws {
    let found = try answer([5: .init(address: 1024, length: 0, flags: .next, next: 5)], [5])
    #expect(found == .chainTooLong(head: 5))
  }

  @Test("A chain that enters a loop") func loop() throws {
    let table: [Int: D] = [
      0: .init(address: 1024, length: 1, flags: .next, next: 1), 1: .init(address: 1024, length: 1, flags: .next, next: 2),
      2: .init(address: 1024, length: 1, flags: .next, next: 1),
    ]
    #expect(try answer(table, [0]) == .chainTooLong(head: 0))
  }

  @Test("A chain of all entries is none too long") func fullChain() throws {
    let table = Dictionary(
      uniqueKeysWithValues: (0..<8).map { index in
        (index, D(address: 1024, length: 4, flags: index < 7 ? .next : [], next: UInt16(index + 1)))
      })
    #expect(try answer(table, [0], served: [0]) == nil)
  }

  @Test("An indirect descriptor, first or later") func indirect() throws {
    #expect(try answer([2: .init(address: 1024, length: 16, flags: .indirect)], [2]) == .indirect(descriptor: 2))
    let later: [Int: D] = [
      1: .init(address: 1024, length: 4, flags: .next, next: 2), 2: .init(address: 1024, length: 16, flags: .indirect),
    ]
    #expect(try answer(later, [1]) == .indirect(descriptor: 2))
  }

  @Test("A readable buffer behind a writable one") func order() throws {
    let table: [Int: D] = [
      0: .init(address: 1024, length: 4, flags: [.write, .next], next: 1), 1: .init(address: 1024, length: 4),
    ]
    #expect(try answer(table, [0]) == .readableAfterWritable(descriptor: 1))
  }

  @Test(
    "A buffer that does not lie in the region, or whose end overflows",
    arguments: [
      (end, 1), (end - 3, 4), (end + 1, 0), (0, UInt32(end) + 1), (0, .max), (.max, 1), (.max, .max), (1 << 63, 4),
      (.max - 3, 4), (UInt64(Int.max), 1), (0 &- UInt64(UInt32.max), .max),
    ] as [(UInt64, UInt32)], [[], .write] as [VirtqueueDescriptor.Flags])
  func outside(_ buffer: (UInt64, UInt32), _ flags: VirtqueueDescriptor.Flags) throws {
    let found = try answer([1: .init(address: buffer.0, length: buffer.1, flags: flags)], [1])
    #expect(found == .outsideMemory(descriptor: 1, address: buffer.0, length: buffer.1))
  }

  @Test("The last byte of the region, and no byte at its end") func edges() throws {
    let table: [Int: D] = [
      0: .init(address: Self.end - 1, length: 1, flags: .write), 1: .init(address: Self.end, length: 0, flags: .write),
    ]
    #expect(try answer(table, [0, 1], served: [0, 1]) == nil)
  }

  @Test("Good chains before the bad one are served, those behind it are not") func between() throws {
    let table: [Int: D] = [0: .init(address: 1024, length: 4), 1: .init(address: Self.end, length: 9)]
    let found = try answer(table, [0, 0, 1, 0], served: [0, 0])
    #expect(found == .outsideMemory(descriptor: 1, address: Self.end, length: 9))
  }

  @Test("Flags that virtio does not define are ignored") func unknownFlags() throws {
    #expect(try answer([0: .init(address: 1024, length: 4, flags: .init(rawValue: 0xfff8))], [0], served: [0]) == nil)
  }

  @Test("A buffer that lies over the rings harms nobody but the driver") func overRings() throws {
    let table: [Int: D] = [0: .init(address: 0, length: 512, flags: .write), 1: .init(address: 1024, length: 4)]
    // The table that was overwritten has been read already.
    let memory = try GuardedMemory(pages: 4)
    let layout = try VirtqueueLayout(size: Self.size, in: memory.region.byteCount)
    let driver = HostileDriver(region: memory.region, layout: layout)
    for (index, descriptor) in table { try driver.describe(index, descriptor) }
    try driver.offer([0, 1])
    var device = VirtqueueDevice(layout, CheckedRingMemory(memory.region), buffers: memory.region)
    #expect(try device.serve { request throws(PinError) in _ = try request.drain() } == 2)
    let failure = queueError { () throws(VirtqueueError) in _ = try device.serve { _ throws(PinError) in } }
    #expect(failure == .needsReset(.availableIndexJumped(from: 2, to: 0x7777)))
    #expect(memory.isIntact)
    try memory.close()
  }

  @Test("A chain of more than 2^32 bytes") func tooLarge() throws {
    struct Vast: BufferMemory {
      var byteCount: Int { 1 << 40 }
      func copy(fromByteOffset offset: Int, into target: UnsafeMutableRawBufferPointer) throws(PinError) {}
      func copy(_ source: UnsafeRawBufferPointer, toByteOffset offset: Int) throws(PinError) {}
    }
    let memory = try GuardedMemory(pages: 4)
    let layout = try VirtqueueLayout(size: Self.size, in: memory.region.byteCount)
    let driver = HostileDriver(region: memory.region, layout: layout)
    for (last, isTooLarge) in [(UInt32(1), false), (2, true)] {
      try driver.describe(0, .init(address: 0, length: .max, flags: .next, next: 1))
      try driver.describe(1, .init(address: 1 << 39, length: last))
      try driver.offer([0])
      var device = VirtqueueDevice(layout, CheckedRingMemory(memory.region), buffers: Vast())
      let failure = queueError { () throws(VirtqueueError) in _ = try device.serve { _ throws(PinError) in } }
      #expect(failure == (isTooLarge ? .needsReset(.chainTooLarge(head: 0)) : nil))
    }
    try memory.close()
  }

  @Test("A descriptor that changes after it was checked is not looked at again") func changes() throws {
    let memory = try GuardedMemory(pages: 4)
    let layout = try VirtqueueLayout(size: Self.size, in: memory.region.byteCount)
    let driver = HostileDriver(region: memory.region, layout: layout)
    try driver.describe(0, .init(address: 1024, length: 4, flags: .next, next: 1))
    try driver.describe(1, .init(address: 2048, length: 4, flags: .write))
    try driver.offer([0])
    let log = AccessLog()
    var device = VirtqueueDevice(
      layout, RecordingRings(memory.region, log), buffers: RecordingBuffers(region: memory.region, log: log))
    let count = try device.serve { request throws(PinError) in
      for index in 0..<2 {
        try memory.region.store(
          VirtqueueDescriptor(address: Self.end, length: 4096, flags: .indirect),
          toByteOffset: layout.descriptor(UInt16(index)))
      }
      try memory.region.store(UInt16.max, toByteOffset: layout.availableEntry(0))
      _ = try request.drain()
    }
    #expect(count == 1 && device.violation == nil)
    #expect(try driver.used() == [.init(id: 0, length: 4)])
    // The head, and each descriptor, once.
    #expect(log.of(.load).map(\.offset) == [layout.availableEntry(0), layout.descriptor(0), layout.descriptor(1)])
    #expect(log.of(.read, .write).map(\.offset) == [1024, 2048])
    try memory.close()
  }
}
