import CTestSupport
import Glibc
@testable import PinKit
import Synchronization
import Testing
import Virtqueue

/// A queue whose two sides are threads: every chain carries a number and a checksum, and its answer does too.
private final class Exchange: Sendable {
  let region: Region
  let layout: VirtqueueLayout
  let count: Int
  let findings = Findings()
  let isOver = Shared()
  let served = Shared()
  let retries = Shared()
  /// By number: how often it was served.
  private let times: Mutex<[UInt8]>
  static let slotBytes = 600
  /// Where chain slots begin, and how many there are.
  let payload: Int
  let slots: Int

  init(_ region: Region, size: Int, count: Int, payloadPage: Int, slots: Int) throws {
    self.region = region
    layout = try VirtqueueLayout(size: size, in: region.byteCount)
    self.count = count
    payload = payloadPage * 4096
    self.slots = slots
    times = Mutex(Array(repeating: 0, count: count))
  }

  var exactlyOnce: Bool { times.withLock { $0.allSatisfy { $0 == 1 } } }

  private static func message(_ number: Int, _ bytes: Int) -> [UInt8] {
    var random = SeededRandom(seed: Seed.of(number))
    var body = withUnsafeBytesOf(UInt64(number))
    while body.count < bytes - 8 { body.append(UInt8(truncatingIfNeeded: random.next())) }
    return body + withUnsafeBytesOf(fnv(body))
  }
  private static func withUnsafeBytesOf(_ value: UInt64) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }
  }
  private static func number(_ bytes: [UInt8]) -> Int {
    bytes.prefix(8).reversed().reduce(0) { $0 << 8 | Int($1) }
  }
  private static func isSound(_ bytes: [UInt8]) -> Bool {
    bytes.count >= 16 && Array(bytes.suffix(8)) == withUnsafeBytesOf(fnv(bytes.dropLast(8)))
  }

  /// Whether `body` was not denied.
  private func isAllowed(_ body: () throws -> Void) throws -> Bool {
    do { try body() } catch let error as PinError where error.code == .accessDenied {
      retries.add()
      return false
    }
    return true
  }

  func drive<Rings: RingMemory>(_ rings: Rings) throws {
    defer { isOver.value = 1 }
    var driver = try VirtqueueDriver(layout, rings)
    isReady.value = 1
    var random = SeededRandom(seed: Seed.of(99))
    var free = Array(0..<slots)
    var flying: [UInt16: (number: Int, slot: Int, bytes: Int)] = [:]
    var (next, back) = (0, 0)
    while back < count, findings.isEmpty {
      var idle = true
      if next < count, let slot = free.last {
        let at = payload + slot * Self.slotBytes
        let bytes = 16 + Int.random(in: 0...200, using: &random)
        let message = Self.message(next, bytes)
        var isWritten = false
        while !isWritten, findings.isEmpty {
          isWritten = try isAllowed { unsafe try message.withUnsafeBytes { unsafe try region.copy($0, toByteOffset: at) } }
        }
        // Parts of the message, then room for the answer.
        let cut = Int.random(in: 0...bytes, using: &random)
        let buffers: [VirtqueueBuffer] =
          [.readable(at: at, cut), .readable(at: at + cut, bytes - cut)]
          + (random.chance(50)
            ? [.writable(at: at + 300, bytes)] : [.writable(at: at + 300, 7), .writable(at: at + 307, bytes)])
        if let id = try driver.post(buffers) {
          if flying.updateValue((next, slot, bytes), forKey: id) != nil { findings.note("id \(id) was given twice") }
          free.removeLast()
          next += 1
          idle = false
        }
      }
      if let completion = try driver.takeCompletion() {
        guard let (number, slot, bytes) = flying.removeValue(forKey: completion.id) else {
          findings.note("completion of \(completion.id), which was not posted")
          return
        }
        var answer = [UInt8](repeating: 0, count: bytes)
        var isRead = false
        while !isRead, findings.isEmpty {
          isRead = try isAllowed {
            unsafe try answer.withUnsafeMutableBytes {
              unsafe try region.copy(fromByteOffset: payload + slot * Self.slotBytes + 300, into: $0)
            }
          }
        }
        if completion.length != bytes || answer != Self.message(number + count, bytes) {
          findings.note("the answer to \(number) has \(completion.length) of \(bytes) bytes, and is \(answer)")
        }
        free.append(slot)
        back += 1
        idle = false
      }
      if idle { sched_yield() }
    }
    retries.add(driver.retries)
  }

  let isReady = Shared()

  func serve<Rings: RingMemory, Buffers: BufferMemory>(_ rings: Rings, _ buffers: Buffers) throws {
    while isReady.value == 0, isOver.value == 0 { sched_yield() }
    var device = VirtqueueDevice(layout, rings, buffers: buffers)
    while isOver.value == 0, findings.isEmpty {
      var numbers: [Int] = []
      let count = try device.serve(limit: 16) { request throws(PinError) in
        var bytes = [UInt8](repeating: 0, count: request.readableByteCount)
        var span = bytes.mutableSpan
        _ = try request.read(into: &span)
        let number = Self.number(bytes)
        guard Self.isSound(bytes), number < self.count else {
          self.findings.note("chain \(request.id) holds \(bytes)")
          return
        }
        _ = try request.write(Self.message(number + self.count, bytes.count).span)
        numbers.append(number)
      }
      times.withLock { times in for number in numbers { times[number] += 1 } }
      served.add(count)
      if count == 0 { sched_yield() }
    }
    retries.add(device.retries)
  }

  /// Calls `body` for as long as the exchange goes on. Not before there are rings: nobody tries again to make those.
  func disturb(_ body: (Int) throws -> Void) throws {
    while isReady.value == 0, isOver.value == 0 { sched_yield() }
    var round = 0
    while isOver.value == 0, findings.isEmpty {
      do { try body(round) } catch { findings.note("\(error)") }
      round += 1
    }
  }
}

@Suite("A virtqueue between threads", .serialized) struct VirtqueueRaceTests {
  @Test(
    "W5/N2: every chain is served exactly once while the region is cloned, snapshotted, tracked, protected and discarded",
    .enabled(
      if: ct_has_thread_sanitizer() == 0,
      "the thread sanitizer keeps a lock of its own while an ordered store waits for its fault"),
    arguments: [false, true])
  func disturbed(isDirect: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 64)
    // Pages: 0..<2 the rings, 2..<20 the payload, 40..<64 what no descriptor uses.
    let exchange = try Exchange(region, size: 64, count: 20_000, payloadPage: 2, slots: 100)
    let (clones, snapshots, sets, protections, discards) = (Shared(), Shared(), Shared(), Shared(), Shared())
    let tracker = try region.trackWrites(.handlerThread)
    let threads = [
      TestThread {
        if isDirect { return try exchange.drive(DirectRingMemory(region, exchange.layout)) }
        try exchange.drive(CheckedRingMemory(region))
      },
      TestThread {
        if isDirect { return try exchange.serve(DirectRingMemory(region, exchange.layout), region) }
        try exchange.serve(CheckedRingMemory(region), region)
      },
      TestThread {
        try exchange.disturb { round in
          switch round % 4 {
          case 0:
            let clone = try region.clone()
            try clone.store(UInt64(round), toByteOffset: 4 * 4096)
            try clone.unmap()
            clones.add()
          case 1:
            let snapshot = try region.snapshot()
            for page in [0, 3, 50] { _ = try snapshot.read(page) }
            snapshot.close()
            snapshots.add()
          case 2:
            _ = try tracker.collect()
            sets.add()
          default:
            try region.store(UInt8(1), toByteOffset: 50 * 4096)
            try region.discard(40..<64)
            discards.add()
          }
          yieldForAWhile(milliseconds: 1)
        }
      },
      TestThread {
        var random = SeededRandom(seed: Seed.of(5))
        try exchange.disturb { round in
          // Sometimes the rings themselves.
          let first = Int.random(in: 0..<20, using: &random)
          let pages = first..<min(20, first + Int.random(in: 1...4, using: &random))
          try region.protect(pages, to: random.chance(50) ? .readOnly : .none)
          yieldForAWhile(milliseconds: UInt64.random(in: 0...1, using: &random))
          try region.protect(pages, to: .readWrite)
          protections.add()
          yieldForAWhile(milliseconds: 1)
        }
      },
    ]
    for thread in threads { try thread.join() }
    #expect(exchange.findings.all == [])
    #expect(exchange.exactlyOnce && exchange.served.value == exchange.count)
    for (name, happened) in [
      ("clones", clones), ("snapshots", snapshots), ("sets", sets), ("protections", protections), ("discards", discards),
      ("retries", exchange.retries),
    ] { #expect(happened.value > 3, "\(name)") }
    try tracker.stop()
    try space.close()
  }

  @Test("By a pointer, without anybody else") func undisturbed() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 32)
    let exchange = try Exchange(region, size: 32, count: 20_000, payloadPage: 2, slots: 64)
    let rings = PointerRings(region: region)
    let threads = [
      TestThread { try exchange.drive(rings) }, TestThread { try exchange.serve(rings, rings) },
    ]
    for thread in threads { try thread.join() }
    #expect(exchange.findings.all == [])
    #expect(exchange.exactlyOnce && exchange.served.value == exchange.count && exchange.retries.value == 0)
    try space.close()
  }
}
