internal import Glibc
internal import PinKit
internal import Virtqueue

/// A region between two guards, and a driver that writes what it likes into the rings.
@safe final class VringGarbage {
  struct Outcome {
    /// One for each kind of garbage, in the order of ``kinds``.
    var cases: [Case] = []
    var rounds = 0
    /// Rounds without garbage, which ended with every chain served.
    var good = 0
    /// Rounds that ended with a reset, by the name of the violation.
    var refused: [String: Int] = [:]
    /// Rounds that ended otherwise.
    var strange: [String] = []
    /// Bytes beside the region that changed.
    var changedGuards = 0
    var guardBytes = 0
  }

  struct Case {
    var kind: Kind
    /// What the device said.
    var answer: VirtqueueViolation?
    /// Chains in the used ring: the good one in front.
    var used: Int
  }

  private static let size = 16
  private static let pages = 16
  private static let guardBytes = 64 * 4096
  private static let pattern: UInt8 = 0xa5

  private let space: AddressSpace
  private let region: Region
  private let layout: VirtqueueLayout
  private let start: UnsafeMutableRawPointer
  private let bytes: Int

  private init() throws {
    bytes = 2 * Self.guardBytes + Self.pages * 4096
    let mapped = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else {
      throw PinError(.outOfMemory, operation: "mmap", advice: "The guards need half a megabyte.")
    }
    unsafe start = mapped
    unsafe memset(start, CInt(Self.pattern), bytes)
    space = try DemoSpace.make()
    region = try space.adopt(
      AddressRange(start: UInt(bitPattern: unsafe start) + UInt(Self.guardBytes), count: Self.pages * 4096))
    layout = try VirtqueueLayout(size: Self.size, in: Self.pages * 4096)
  }

  deinit { unsafe munmap(start, bytes) }

  static func perform(rounds: Int) throws -> Outcome {
    let memory = try VringGarbage()
    var outcome = Outcome(rounds: rounds, guardBytes: 2 * guardBytes)
    for kind in kinds { outcome.cases.append(try memory.run(kind)) }
    var random = VringRandom(state: 1)
    for _ in 0..<rounds { try memory.runAtRandom(&outcome, &random) }
    outcome.changedGuards = memory.changedGuards
    try memory.space.close()
    return outcome
  }

  private var changedGuards: Int {
    [0, bytes - Self.guardBytes].reduce(0) { count, offset in
      let changed = unsafe UnsafeRawBufferPointer(start: start + offset, count: Self.guardBytes).count { $0 != Self.pattern }
      return count + changed
    }
  }

  private func write(_ table: [VirtqueueDescriptor], _ heads: [UInt16], index: UInt16) throws {
    for (place, descriptor) in table.enumerated() {
      try region.store(descriptor, toByteOffset: layout.descriptor(UInt16(place)))
    }
    for (place, head) in heads.enumerated() {
      try region.store(head, toByteOffset: layout.availableEntry(UInt16(place)))
    }
    try region.storeReleasing(0, toByteOffset: layout.usedIndex)
    try region.storeReleasing(index, toByteOffset: layout.availableIndex)
  }

  /// Reads all that can be read, fills all that can be written.
  private func serve() -> Result<Int, VirtqueueError> {
    var device = VirtqueueDevice(layout, CheckedRingMemory(region), buffers: region)
    var served = 0
    do throws(VirtqueueError) {
      while true {
        let count = try device.serve { request throws(PinError) in
          var bytes = [UInt8](repeating: 0x5a, count: max(request.readableByteCount, request.writableByteCount))
          var span = bytes.mutableSpan
          _ = try request.read(into: &span)
          _ = try request.write(bytes.span)
        }
        guard count > 0, served <= 4 * layout.size else { return .success(served) }
        served += count
      }
    } catch { return .failure(error) }
  }

  private func run(_ kind: Kind) throws -> Case {
    var table = Array(repeating: Self.tame, count: Self.size)
    kind.spoil(&table, UInt64(region.byteCount))
    // The good chain first.
    try write(table, [15, kind.head] + Array(repeating: 15, count: Self.size - 2), index: kind.index)
    var answer: VirtqueueViolation?
    if case .failure(.needsReset(let violation)) = serve() { answer = violation }
    return Case(kind: kind, answer: answer, used: Int(try region.loadAcquiring(fromByteOffset: layout.usedIndex)))
  }

  private func runAtRandom(_ outcome: inout Outcome, _ random: inout VringRandom) throws {
    // From one field in fifty to every one.
    let wildness = [2, 5, 20, 100].randomElement(using: &random) ?? 100
    func isWild() -> Bool { Int.random(in: 0..<100, using: &random) < wildness }
    func word() -> UInt16 { UInt16(truncatingIfNeeded: random.next()) }
    let table = (0..<Self.size).map { place -> VirtqueueDescriptor in
      var made = Self.tame
      made.flags = Bool.random(using: &random) ? .write : []
      if place % 4 != 3, Bool.random(using: &random) {
        made.flags.insert(.next)
        made.next = UInt16(place + 1)
      }
      let byteCount = UInt64(region.byteCount)
      if isWild() {
        made.address = [random.next(), byteCount, byteCount - 1, .max - 32, 0].randomElement(using: &random) ?? 0
      }
      if isWild() { made.length = Bool.random(using: &random) ? UInt32(truncatingIfNeeded: random.next()) : .max }
      if isWild() { made.flags = .init(rawValue: word()) }
      if isWild() { made.next = Bool.random(using: &random) ? word() : UInt16(place) }
      return made
    }
    let heads = (0..<Self.size).map { _ in isWild() ? word() : word() % UInt16(Self.size) }
    try write(table, heads, index: isWild() ? word() : word() % UInt16(Self.size))
    switch serve() {
    case .success: outcome.good += 1
    case .failure(.needsReset(let violation)): outcome.refused[Self.name(violation), default: 0] += 1
    case .failure(let error): outcome.strange.append("\(error)")
    }
  }

  /// A buffer in the middle of the region, far from the rings.
  static var tame: VirtqueueDescriptor { VirtqueueDescriptor(address: 8 * 4096, length: 32) }

  static func name(_ violation: VirtqueueViolation) -> String {
    Mirror(reflecting: violation).children.first?.label ?? "\(violation)"
  }
}

/// SplitMix64: the same rings in every run.
struct VringRandom: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}
