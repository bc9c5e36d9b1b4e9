@testable import PinKit
import Testing
import Virtqueue

@Suite("A virtqueue that is refused something") struct VirtqueueRefusalTests {
  @Test("Wherever an access is denied, the next call goes on, and nothing is lost or done twice") func denials() throws {
    // The n-th access fails, for every n that there is.
    var (denied, fails) = (0, true)
    while fails {
      fails = false
      let bench = try QueueBench()
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
    let bench = try QueueBench()
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
    let bench = try QueueBench(size: 4)
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
      let bench = try QueueBench()
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
    let bench = try QueueBench()
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
    let bench = try QueueBench()
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
