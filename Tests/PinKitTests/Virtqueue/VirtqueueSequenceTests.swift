import Glibc
@testable import PinKit
import Testing
import Virtqueue

/// Numbers that go through a queue in order: the payload of a chain is written before the chain is posted, and the answer before
/// it is used, so whoever sees an index early sees an old number.
private struct Sequence<Memory: RingMemory & BufferMemory> {
  let memory: Memory
  let layout: VirtqueueLayout
  let count: Int
  let findings = Findings()
  let stage = Shared()
  private static var slots: Int { 512 }

  private func slot(_ number: Int) -> Int { 65_536 + 64 * (number % Self.slots) }

  private func store(_ value: Int, at offset: Int) throws {
    unsafe try withUnsafeBytes(of: value) { unsafe try memory.copy($0, toByteOffset: offset) }
  }
  private func load(at offset: Int) throws -> Int {
    var value = 0
    unsafe try withUnsafeMutableBytes(of: &value) { unsafe try memory.copy(fromByteOffset: offset, into: $0) }
    return value
  }

  func drive() throws {
    defer { stage.value = 2 }
    var driver = try VirtqueueDriver(layout, memory)
    stage.value = 1
    var (posted, back) = (0, 0)
    // Only the queue orders the two sides: a lock that both take would hide what it does not.
    var isSound = true
    while back < count, isSound {
      let before = posted + back
      while posted < count, posted - back < Self.slots, driver.freeDescriptors >= 2 {
        try store(posted, at: slot(posted))
        guard try driver.post([.readable(at: slot(posted), 8), .writable(at: slot(posted) + 8, 8)]) != nil else { break }
        posted += 1
      }
      while let completion = try driver.takeCompletion() {
        let answer = try load(at: slot(back) + 8)
        if answer != ~back || completion.length != 8 { findings.note("the answer to \(back) is \(answer)") }
        back += 1
      }
      if posted + back == before {
        isSound = findings.isEmpty
        sched_yield()
      }
    }
  }

  func serve() throws {
    while stage.value == 0 { sched_yield() }
    var device = VirtqueueDevice(layout, memory, buffers: memory)
    var expected = 0
    while stage.value < 2 {
      let served = try device.serve(limit: 16) { request throws(PinError) in
        var bytes = InlineArray<8, UInt8>(repeating: 0)
        var span = bytes.mutableSpan
        _ = try request.read(into: &span)
        let number = bytes.indices.reduce(0) { $0 | Int(bytes[$1]) << (8 * $1) }
        if number != expected { findings.note("\(number) where \(expected) should be") }
        for index in bytes.indices { bytes[index] = ~bytes[index] }
        _ = try request.write(bytes.span)
        expected += 1
      }
      if served == 0 { sched_yield() }
    }
    if expected != count { findings.note("\(expected) of \(count) chains were served") }
  }

  func run() throws {
    let sides = self
    try onThreads(2) { try $0 == 0 ? sides.drive() : sides.serve() }
    #expect(findings.all == [])
  }
}

private struct CheckedMemory: RingMemory, BufferMemory {
  let region: Region
  var byteCount: Int { region.byteCount }
  func withWindow<Result>(_ body: (CheckedRingMemory) throws(PinError) -> Result) throws(PinError) -> Result {
    try CheckedRingMemory(region).withWindow(body)
  }
  func copy(fromByteOffset offset: Int, into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    unsafe try region.copy(fromByteOffset: offset, into: target)
  }
  func copy(_ source: UnsafeRawBufferPointer, toByteOffset offset: Int) throws(PinError) {
    unsafe try region.copy(source, toByteOffset: offset)
  }
}

@Suite("The order of a million descriptors, two a chain", .serialized) struct VirtqueueSequenceTests {
  @Test("By a pointer") func byPointer() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 32)
    let layout = try VirtqueueLayout(size: 256, in: region.byteCount)
    try Sequence(memory: PointerRings(region: region), layout: layout, count: 500_000).run()
    try space.close()
  }

  @Test("By the checked accessors") func checked() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 32)
    let layout = try VirtqueueLayout(size: 256, in: region.byteCount)
    try Sequence(memory: CheckedMemory(region: region), layout: layout, count: 100_000).run()
    try space.close()
  }
}
