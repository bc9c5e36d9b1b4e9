@testable import PinKit
import Testing
import Virtqueue

@Suite("Where a virtqueue lies") struct VirtqueueLayoutTests {
  @Test("Sizes, offsets and alignment are virtio's") func sizes() throws {
    let layout = try VirtqueueLayout(size: 256, at: 128, in: 1 << 20)
    #expect(layout.descriptors == 128..<128 + 4096)
    #expect(layout.available == 4224..<4224 + 518)
    #expect(layout.used == 4800..<4800 + 2054)
    #expect(layout.bytes == 128..<6854)
    #expect(VirtqueueLayout.byteCount(size: 256) == 6854 - 128)
    #expect(layout.availableEntry(257) == layout.available.lowerBound + 6)
    #expect(layout.usedEntry(.max) == layout.used.lowerBound + 4 + 8 * 255)
    #expect(MemoryLayout<VirtqueueDescriptor>.size == 16 && MemoryLayout<VirtqueueUsedElement>.size == 8)
    #expect(MemoryLayout<VirtqueueDescriptor>.offset(of: \.next) == 14)
  }

  @Test("It fits to the byte", arguments: [1, 2, 256, 32_768]) func fits(size: Int) throws {
    let bytes = VirtqueueLayout.byteCount(size: size)
    #expect(try VirtqueueLayout(size: size, in: bytes).bytes.upperBound == bytes)
    #expect(throws: VirtqueueError.self) { try VirtqueueLayout(size: size, in: bytes - 1) }
    #expect(try VirtqueueLayout(size: size, at: 64, in: bytes + 64).bytes.upperBound == bytes + 64)
    #expect(throws: VirtqueueError.self) { try VirtqueueLayout(size: size, at: 64, in: bytes + 63) }
  }

  @Test("Layouts that cannot be are refused") func refuses() {
    for size in [0, -1, 3, 65_536, Int.min, .max] {
      #expect(throws: VirtqueueError.self) { try VirtqueueLayout(size: size, in: 1 << 30) }
    }
    for offset in [-64, 1, 32, 1 << 20, Int.max & ~63] {
      #expect(throws: VirtqueueError.self) { try VirtqueueLayout(size: 16, at: offset, in: 1 << 20) }
    }
    let wrong = [
      (8, 512, 1024), (0, 513, 1024), (0, 512, 1026), (0, 128, 1024), (0, 512, 516), (512, 0, 600), (0, 512, 4096),
      (-16, 512, 1024),
      (Int.max & ~15, 512, 1024), (0, Int.max - 1, 1024), (0, 512, Int.max & ~3),
    ]
    for (descriptors, available, used) in wrong {
      #expect(throws: VirtqueueError.self, "\(descriptors), \(available), \(used)") {
        try VirtqueueLayout(size: 16, descriptorsAt: descriptors, availableAt: available, usedAt: used, in: 4096)
      }
    }
  }
}

@Suite("A virtqueue by one thread") struct VirtqueueQueueTests {
  private struct Bench {
    let space: AddressSpace
    let region: Region
    let layout: VirtqueueLayout
    let log = AccessLog()
    var rings: RecordingRings { RecordingRings(region, log) }
    var buffers: RecordingBuffers { RecordingBuffers(region: region, log: log) }

    init(size: Int = 8) throws {
      space = try AddressSpace.forTests()
      region = try space.map(.pool, pages: 4)
      layout = try VirtqueueLayout(size: size, in: region.byteCount)
    }
  }

  @Test("A chain's bytes go through its buffers in order, and come back with their length") func chains() throws {
    let bench = try Bench()
    var driver = try VirtqueueDriver(bench.layout, bench.rings)
    var device = VirtqueueDevice(bench.layout, bench.rings, buffers: bench.region)
    for byte in 0..<10 { try bench.region.store(UInt8(byte), toByteOffset: 4090 + byte) }
    let id = try driver.post([
      .readable(at: 4090, 3), .readable(at: 4093, 0), .readable(at: 4093, 7), .writable(at: 9000, 2), .writable(at: 9010, 5),
    ])
    #expect(id != nil && driver.freeDescriptors == 3 && driver.outstanding == 1)
    var read: [UInt8] = []
    let count = try device.serve { request throws(PinError) in
      var bytes = [UInt8](repeating: 0xff, count: 4)
      for expected in [4, 4, 2, 0] {
        var span = bytes.mutableSpan
        let count = try request.read(into: &span)
        #expect(count == expected)
        read += bytes.prefix(count)
      }
      let answer: [UInt8] = [1, 2, 3]
      #expect(try request.write(answer.span) == 3)
      #expect(request.readableByteCount == 10 && request.writableByteCount == 7 && request.bufferCount == 5)
    }
    #expect(count == 1 && read == Array(0..<10))
    let completion = try driver.takeCompletion()
    #expect(completion?.id == id && completion?.length == 3)
    #expect(try [9000, 9001, 9010, 9011].map { try bench.region.load(fromByteOffset: $0) as UInt8 } == [1, 2, 3, 0])
    #expect(driver.freeDescriptors == 8 && driver.outstanding == 0)
    #expect(try driver.takeCompletion() == nil)
    #expect(try device.serve { _ throws(PinError) in } == 0)
    try bench.space.close()
  }

  @Test("Indices wrap, and the table is never short", arguments: [1, 2, 8, 32_768]) func wraps(size: Int) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 256)
    let layout = try VirtqueueLayout(size: size, in: region.byteCount)
    var driver = try VirtqueueDriver(layout, PointerRings(region: region))
    var device = VirtqueueDevice(layout, PointerRings(region: region), buffers: region)
    var random = SeededRandom(seed: UInt64(size))
    var (posted, completed) = (0, 0)
    while completed < 150_000 {
      for _ in 0..<Int.random(in: 1...24, using: &random) {
        let buffers = [VirtqueueBuffer](
          repeating: .readable(at: 0, 1), count: Int.random(in: 1...min(3, size), using: &random))
        if try driver.post(buffers) != nil { posted += 1 }
      }
      _ = try device.serve(limit: 16) { _ throws(PinError) in }
      while try driver.takeCompletion() != nil { completed += 1 }
      #expect(driver.outstanding == posted - completed)
    }
    while try device.serve({ _ throws(PinError) in }) > 0 {}
    while try driver.takeCompletion() != nil { completed += 1 }
    #expect(posted == completed && driver.freeDescriptors == size)
    try space.close()
  }

  @Test("Each side publishes its index after all that it means, and looks at it before all that it means") func order()
    throws
  {
    let bench = try Bench()
    let layout = bench.layout
    var driver = try VirtqueueDriver(layout, bench.rings)
    var device = VirtqueueDevice(layout, bench.rings, buffers: bench.buffers)
    bench.log.events = []
    _ = try driver.post([.readable(at: 8192, 4), .writable(at: 8200, 4)])
    #expect(
      bench.log.events.map { [$0.kind: $0.offset] } == [
        [.store: layout.descriptor(0)], [.store: layout.descriptor(1)], [.store: layout.availableEntry(0)],
        [.release: layout.availableIndex],
      ])
    _ = try driver.post([.writable(at: 8204, 4)])
    bench.log.events = []
    #expect(try device.serve { request throws(PinError) in _ = try request.drain() } == 2)
    #expect(
      bench.log.events.map { [$0.kind: $0.offset] } == [
        [.acquire: layout.availableIndex], [.load: layout.availableEntry(0)], [.load: layout.descriptor(0)],
        [.load: layout.descriptor(1)], [.load: layout.availableEntry(1)], [.load: layout.descriptor(2)],
        [.read: 8192], [.write: 8200], [.write: 8204], [.store: layout.usedEntry(0)], [.store: layout.usedEntry(1)],
        [.release: layout.usedIndex],
      ])
    bench.log.events = []
    while try driver.takeCompletion() != nil {}
    #expect(
      bench.log.events.map { [$0.kind: $0.offset] } == [
        [.acquire: layout.usedIndex], [.load: layout.usedEntry(0)], [.load: layout.usedEntry(1)],
        [.acquire: layout.usedIndex],
      ])
    try bench.space.close()
  }

  @Test("Wherever an access is denied, the next call goes on, and nothing is lost or done twice") func denials() throws {
    // The n-th access fails, for every n that there is.
    var (denied, fails) = (0, true)
    while fails {
      fails = false
      let bench = try Bench()
      var driver = try VirtqueueDriver(bench.layout, bench.rings)
      var device = VirtqueueDevice(bench.layout, bench.rings, buffers: bench.buffers)
      var count = 0
      bench.log.hook = { event throws(PinError) in
        count += 1
        guard count - 1 == denied else { return }
        fails = true
        throw PinError(.accessDenied, operation: "test")
      }
      var ids: [UInt16] = []
      for _ in 0..<10 where ids.count < 3 {
        if let id = try driver.post([.readable(at: 8192, 4), .writable(at: 8200 + 8 * ids.count, 4)]) { ids.append(id) }
      }
      var (served, done) = (0, [UInt16]())
      for _ in 0..<10 where served < 3 {
        served += try device.serve(limit: 2) { request throws(PinError) in
          _ = try request.drain()
          done.append(request.id)
        }
      }
      var back: [UInt16] = []
      for _ in 0..<10 where back.count < 3 {
        if let completion = try driver.takeCompletion() { back.append(completion.id) }
      }
      #expect(done == ids, "denied access \(denied)")
      #expect(back == ids && Set(ids).count == 3, "denied access \(denied)")
      #expect(try device.serve { _ throws(PinError) in } == 0)
      #expect(try driver.takeCompletion() == nil)
      #expect(try bench.region.loadAcquiring(fromByteOffset: bench.layout.usedIndex) == 3)
      #expect(driver.retries + device.retries == (fails ? 1 : 0), "denied access \(denied)")
      denied += 1
      try bench.space.close()
    }
    #expect(denied > 30)
  }

  @Test("Memory that is gone is an error, not a retry") func unmapped() throws {
    let bench = try Bench()
    var driver = try VirtqueueDriver(bench.layout, CheckedRingMemory(bench.region))
    var device = VirtqueueDevice(bench.layout, CheckedRingMemory(bench.region), buffers: bench.region)
    try bench.region.unmap()
    var failures: [VirtqueueError?] = []
    failures.append(queueError { () throws(VirtqueueError) in _ = try driver.post([.readable(at: 0, 1)]) })
    failures.append(queueError { () throws(VirtqueueError) in _ = try driver.takeCompletion() })
    failures.append(queueError { () throws(VirtqueueError) in _ = try device.serve { _ throws(PinError) in } })
    for failure in failures {
      guard case .memory(let error) = failure else {
        Issue.record("\(String(describing: failure))")
        continue
      }
      #expect(error.code == .unmapped)
    }
    try bench.space.close()
  }

  @Test("Chains that virtio forbids are not posted") func invalidChains() throws {
    let bench = try Bench(size: 4)
    var driver = try VirtqueueDriver(bench.layout, bench.rings)
    let chains: [[VirtqueueBuffer]] = [
      [], Array(repeating: .readable(at: 0, 1), count: 5), [.writable(at: 0, 1), .readable(at: 0, 1)],
      [.readable(at: -1, 1)], [.readable(at: 0, -1)], [.readable(at: 0, 1 << 32)],
      [.readable(at: 0, Int(UInt32.max)), .writable(at: 0, 2)],
    ]
    for chain in chains {
      let failure = queueError { () throws(VirtqueueError) in _ = try driver.post(chain) }
      guard case .invalidChain = failure else {
        Issue.record("\(chain): \(String(describing: failure))")
        continue
      }
    }
    #expect(driver.freeDescriptors == 4 && driver.outstanding == 0)
    try bench.space.close()
  }

  @Test("A device that lies is found out") func lyingDevice() throws {
    let lies: [(VirtqueueUsedElement, UInt16, VirtqueueViolation)] = [
      (.init(id: 0, length: 0), 3, .usedIndexJumped(from: 0, to: 3)),
      (.init(id: 0, length: 0), .max, .usedIndexJumped(from: 0, to: .max)),
      (.init(id: 1, length: 0), 1, .usedUnknown(id: 1)), (.init(id: 7, length: 0), 1, .usedUnknown(id: 7)),
      (.init(id: 8, length: 0), 1, .usedUnknown(id: 8)), (.init(id: .max, length: 0), 1, .usedUnknown(id: .max)),
      (.init(id: 1 << 16, length: 0), 1, .usedUnknown(id: 1 << 16)),
      (.init(id: 0, length: 5), 1, .usedTooLong(id: 0, length: 5)),
    ]
    for (element, index, violation) in lies {
      let bench = try Bench()
      var driver = try VirtqueueDriver(bench.layout, bench.rings)
      _ = try driver.post([.readable(at: 8192, 4), .writable(at: 8200, 4)])
      _ = try driver.post([.readable(at: 8192, 4)])
      try bench.region.store(element, toByteOffset: bench.layout.usedEntry(0))
      try bench.region.storeReleasing(index, toByteOffset: bench.layout.usedIndex)
      for _ in 0..<2 {
        #expect(queueError { () throws(VirtqueueError) in _ = try driver.takeCompletion() } == .needsReset(violation))
      }
      #expect(
        queueError { () throws(VirtqueueError) in _ = try driver.post([.readable(at: 0, 1)]) } == .needsReset(violation))
      try bench.space.close()
    }
    // The same chain twice.
    let bench = try Bench()
    var driver = try VirtqueueDriver(bench.layout, bench.rings)
    for _ in 0..<2 { _ = try driver.post([.readable(at: 8192, 4)]) }
    for number in 0..<2 as Range<UInt16> {
      try bench.region.store(VirtqueueUsedElement(id: 1, length: 0), toByteOffset: bench.layout.usedEntry(number))
    }
    try bench.region.storeReleasing(2, toByteOffset: bench.layout.usedIndex)
    #expect(try driver.takeCompletion()?.id == 1)
    #expect(
      queueError { () throws(VirtqueueError) in _ = try driver.takeCompletion() } == .needsReset(.usedUnknown(id: 1)))
    try bench.space.close()
  }

  @Test("A word that threads share lies at an even offset inside the region") func words() throws {
    let bench = try Bench()
    try bench.region.storeReleasing(0x1234, toByteOffset: 4094)
    #expect(try bench.region.loadAcquiring(fromByteOffset: 4094) == 0x1234)
    #expect(errorCode { try bench.region.storeReleasing(1, toByteOffset: 3) } == .invalidArgument)
    #expect(errorCode { _ = try bench.region.loadAcquiring(fromByteOffset: 16383) } == .outOfBounds)
    #expect(errorCode { _ = try bench.region.loadAcquiring(fromByteOffset: -2) } == .outOfBounds)
    try bench.region.protect(0..<1)
    #expect(errorCode { try bench.region.storeReleasing(1, toByteOffset: 0) } == .accessDenied)
    #expect(try bench.region.loadAcquiring(fromByteOffset: 0) == 0)
    try bench.region.protect(0..<1, to: .none)
    #expect(errorCode { _ = try bench.region.loadAcquiring(fromByteOffset: 0) } == .accessDenied)
    try bench.space.close()
  }
}
