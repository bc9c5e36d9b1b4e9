internal import Dispatch
internal import Foundation
internal import PinKit
internal import Synchronization
internal import Virtqueue

/// A driver and a device on threads of their own, and threads that change their region meanwhile.
final class VringExchange: Sendable {
  struct Outcome {
    var posted = 0
    /// Chains that were served exactly once.
    var servedOnce = 0
    /// How many chains came back.
    var completed = 0
    /// Messages or answers with other bytes, or another length, than they should have.
    var wrong = 0
    var unrest = VringUnrest.Counts()
    /// Accesses of driver and device that were denied and made again.
    var denied = 0
    var seconds = 0.0
    /// What stopped a thread.
    var failures: [String] = []
  }

  /// How both sides reach the rings.
  enum Way: String, CaseIterable {
    case checked = "checked accessors"
    case direct = "direct mappings"
  }

  static let pageSize = 4096
  static let pages = 96
  static let ringPages = 0..<2
  static let payloadPages = 2..<34
  static let unusedPages = 64..<96

  let region: Region
  let layout: VirtqueueLayout
  let isOver = Atomic<Bool>(false)
  let isReady = Atomic<Bool>(false)
  /// Nothing new is posted from then on, in nanoseconds of uptime.
  let end: UInt64
  let outcome = Mutex(Outcome())
  private let group = DispatchGroup()

  private init(_ region: Region, seconds: Double) throws {
    self.region = region
    layout = try VirtqueueLayout(size: 128, in: region.byteCount)
    end = DispatchTime.now().uptimeNanoseconds + UInt64(seconds * 1e9)
  }

  static func perform(seconds: Double, way: Way = .checked) throws -> Outcome {
    let space = try DemoSpace.make()
    let region = try space.map(.pool, pages: pages)
    let tracker = try region.trackWrites(.handlerThread)
    let exchange = try VringExchange(region, seconds: seconds)
    let start = DispatchTime.now().uptimeNanoseconds
    exchange.start("driver") {
      defer { exchange.isOver.store(true, ordering: .releasing) }
      switch way {
      case .checked: try VringDriverSide(exchange, CheckedRingMemory(region)).run()
      case .direct: try VringDriverSide(exchange, DirectRingMemory(region, exchange.layout)).run()
      }
    }
    exchange.start("device") {
      switch way {
      case .checked: try VringDeviceSide(exchange, CheckedRingMemory(region)).run()
      case .direct: try VringDeviceSide(exchange, DirectRingMemory(region, exchange.layout)).run()
      }
    }
    exchange.start("copier") { try VringUnrest.copy(exchange, tracker) }
    exchange.start("protector") { try VringUnrest.protect(exchange) }
    exchange.group.wait()
    var outcome = exchange.outcome.withLock { $0 }
    outcome.seconds = Double(DispatchTime.now().uptimeNanoseconds - start) / 1e9
    try space.close()
    return outcome
  }

  private func start(_ name: String, _ body: @escaping @Sendable () throws -> Void) {
    group.enter()
    let thread = Thread { [self] in
      do { try body() } catch {
        outcome.withLock { $0.failures.append("\(name): \(error)") }
        isOver.store(true, ordering: .releasing)
      }
      group.leave()
    }
    thread.name = name
    thread.start()
  }

  var goesOn: Bool { !isOver.load(ordering: .acquiring) }
}

/// What a chain carries: its number, bytes that follow from it, and a checksum.
enum VringMessage {
  static let byteCount = 128

  static func make(_ number: UInt64) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(byteCount)
    var (state, sum) = (number, UInt64(0))
    for _ in 0..<byteCount / 8 - 1 {
      append(state, to: &bytes)
      sum = mix(sum ^ state)
      state = mix(state)
    }
    append(sum, to: &bytes)
    return bytes
  }

  /// The number of a message that is sound.
  static func number(_ bytes: [UInt8]) -> UInt64? {
    guard bytes.count == byteCount else { return nil }
    let number = (0..<8).reduce(UInt64(0)) { $0 | UInt64(bytes[$1]) << UInt64(8 * $1) }
    return bytes == make(number) ? number : nil
  }

  /// What the device answers.
  static func answer(to number: UInt64) -> [UInt8] { make(~number) }

  private static func append(_ word: UInt64, to bytes: inout [UInt8]) {
    for index in 0..<8 { bytes.append(UInt8(truncatingIfNeeded: word >> UInt64(8 * index))) }
  }

  private static func mix(_ value: UInt64) -> UInt64 {
    let first = (value &+ 0x9e37_79b9_7f4a_7c15) &* 0xbf58_476d_1ce4_e5b9
    return first ^ (first >> 29)
  }
}
