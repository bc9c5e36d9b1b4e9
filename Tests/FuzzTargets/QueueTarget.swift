internal import PinKit
internal import Synchronization
internal import Virtqueue

/// An input is a layout, an index, and then the bytes that a driver left in the rings and behind them.
enum QueueTarget {
  private struct Setting: Sendable {
    let space: AddressSpace
    let region: Region
  }
  private static let pageCount = 8
  private static let setting = Mutex<Setting?>(nil)

  static func run(_ input: [UInt8]) throws -> String? {
    try setting.withLock { kept in
      if kept == nil {
        let space = try AddressSpace()
        kept = Setting(space: space, region: try space.map(.pool, pages: pageCount))
      }
      return try kept.flatMap { try judge($0.region, input) }
    }
  }

  private static func judge(_ region: Region, _ input: [UInt8]) throws -> String? {
    var reader = InputReader(input)
    let size = 1 << Int(reader.byte() & 7)
    let offset = 16 * Int(reader.byte())
    let index = reader.number(UInt16.self)
    let limit = 1 + Int(reader.byte() & 31)
    let isDirect = reader.byte() & 1 != 0
    let layout: VirtqueueLayout
    do throws(VirtqueueError) { layout = try VirtqueueLayout(size: size, at: offset, in: region.byteCount) } catch {
      return nil
    }
    var content = [UInt8](repeating: 0xa5, count: region.byteCount)
    for at in layout.bytes { content[at] = 0 }
    for place in 0..<size {
      for at in 0..<16 { content[layout.descriptor(UInt16(place)) + at] = reader.byte() }
    }
    for place in 0..<size {
      for at in 0..<2 { content[layout.availableEntry(UInt16(place)) + at] = reader.byte() }
    }
    var behind = layout.bytes.upperBound
    while !reader.isAtEnd, behind < content.count {
      content[behind] = reader.byte()
      behind += 1
    }
    content[layout.availableIndex] = UInt8(truncatingIfNeeded: index)
    content[layout.availableIndex + 1] = UInt8(index >> 8)
    try unsafe region.withUnsafeMutableBytes { unsafe $0.copyBytes(from: content) }

    let (served, flaw) =
      isDirect
      ? try serve(VirtqueueDevice(layout, try DirectRingMemory(region, layout), buffers: region), limit)
      : try serve(VirtqueueDevice(layout, CheckedRingMemory(region), buffers: region), limit)
    if let flaw { return flaw }
    if served > 4 * size { return "\(served) chains of a queue of \(size)" }
    return try change(region, layout, content)
  }

  /// Reads all that a chain gives and fills all that it takes.
  private static func serve<Rings: RingMemory>(
    _ device: consuming VirtqueueDevice<Rings, Region>, _ limit: Int
  ) throws -> (Int, String?) {
    var served = 0
    do throws(VirtqueueError) {
      while served <= 4 * device.layout.size {
        let count = try device.serve(limit: limit) { request throws(PinError) in
          var taken = [UInt8](repeating: 0, count: min(request.readableByteCount, 1 << 16))
          var span = taken.mutableSpan
          _ = try request.read(into: &span)
          let given = [UInt8](repeating: 0x77, count: min(request.writableByteCount, 1 << 16))
          _ = try request.write(given.span)
        }
        if count == 0 { break }
        served += count
      }
    } catch {
      if case .memory(let failure) = error { return (served, "\(failure)") }
      if device.violation == nil { return (served, "\(error), and no violation") }
    }
    return (served, nil)
  }

  /// Bytes that changed and that no driver gave away.
  private static func change(_ region: Region, _ layout: VirtqueueLayout, _ content: [UInt8]) throws -> String? {
    var mayChange = [Bool](repeating: false, count: content.count)
    for at in layout.used { mayChange[at] = true }
    for place in 0..<layout.size {
      var reader = InputReader(Array(content[layout.descriptor(UInt16(place))..<layout.descriptor(UInt16(place)) + 16]))
      let (address, length) = (reader.number(UInt64.self), reader.number(UInt32.self))
      guard reader.number(UInt16.self) & 2 != 0, address < UInt64(content.count) else { continue }
      let end = min(Int(address) + Int(length), content.count)
      // What a device writes over the rings makes other descriptors of them.
      if Int(address) < layout.bytes.upperBound, end > layout.bytes.lowerBound { return nil }
      for at in Int(address)..<end { mayChange[at] = true }
    }
    let found = try unsafe region.withUnsafeMutableBytes { unsafe Array($0) }
    let wrong = found.indices.first { found[$0] != content[$0] && !mayChange[$0] }
    return wrong.map { "byte \($0) was changed, the rings being at \(layout.bytes)" }
  }

  static func seeds() -> [[UInt8]] {
    /// A descriptor as it lies in memory.
    func descriptor(_ address: UInt64, _ length: UInt32, flags: UInt16, next: UInt16) -> [UInt8] {
      func bytes<Number: FixedWidthInteger>(_ number: Number) -> [UInt8] {
        stride(from: 0, to: Number.bitWidth, by: 8).map { UInt8(truncatingIfNeeded: number >> Number($0)) }
      }
      return bytes(address) + bytes(length) + bytes(flags) + bytes(next)
    }
    let chain =
      descriptor(8192, 16, flags: 1, next: 1) + descriptor(12288, 512, flags: 3, next: 2)
      + descriptor(20480, 1, flags: 2, next: 0)
    let spare = descriptor(0, 0, flags: 0, next: 0)
    func input(_ index: UInt8, _ table: [UInt8], _ ring: [UInt8]) -> [UInt8] { [2, 0, index, 0, 4, 0] + table + ring }
    return [
      input(1, chain + spare, [0, 0, 0, 0, 0, 0, 0, 0]),
      input(2, chain + spare, [0, 0, 3, 0, 0, 0, 0, 0]),
      // A loop, a jump outside, indirect, and more than there are.
      input(1, descriptor(8192, 16, flags: 1, next: 1) + descriptor(8192, 16, flags: 1, next: 0) + spare + spare, [0, 0]),
      input(1, descriptor(.max - 8, 16, flags: 0, next: 0) + spare + spare + spare, [0, 0]),
      input(1, descriptor(4096, 16, flags: 4, next: 0) + spare + spare + spare, [0, 0]),
      input(200, chain + spare, [0, 0]),
    ]
  }
}
