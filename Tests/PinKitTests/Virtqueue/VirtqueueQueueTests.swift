@testable import PinKit
import Testing
import Virtqueue

/// A queue at the start of a small region, and a log of what is done to it.
struct QueueBench {
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

@Suite("A virtqueue by one thread") struct VirtqueueQueueTests {
  @Test("A chain's bytes go through its buffers in order, and come back with their length") func chains() throws {
    let bench = try QueueBench()
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
    let bench = try QueueBench()
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
}
