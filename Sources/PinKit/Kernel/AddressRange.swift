/// A range of bytes of this process, `start ..< end`.
public struct AddressRange: Sendable, Hashable, Codable, CustomStringConvertible {
  /// The first byte's address.
  public var start: UInt
  /// The address behind the last byte.
  public var end: UInt

  /// As with `Range`, an end before the start ends the program: compare first what comes from outside.
  public init(start: UInt, end: UInt) {
    precondition(start <= end, "an address range ends before it starts")
    self.start = start
    self.end = end
  }

  /// `count` is in bytes. As with `Range`, a count below 0, or beyond the last address, ends the program.
  public init(start: UInt, count: Int) { self.init(start: start, end: start + UInt(count)) }

  /// In bytes; `Int.max` where an `Int` has no room for more, which no memory of a process reaches, and 0 where the end was set before
  /// the start.
  public var count: Int { end > start ? Int(clamping: end &- start) : 0 }
  public var isEmpty: Bool { start == end }
  public func contains(_ address: UInt) -> Bool { start <= address && address < end }
  public func overlaps(_ other: AddressRange) -> Bool { start < other.end && other.start < end }
  public func clamped(to limits: AddressRange) -> AddressRange {
    let low = min(max(start, limits.start), limits.end)
    return AddressRange(start: low, end: max(low, min(end, limits.end)))
  }

  public var description: String { "0x\(String(start, radix: 16))..<0x\(String(end, radix: 16))" }
}

extension AddressRange {
  private enum CodingKeys: CodingKey { case start, end }

  public init(from decoder: any Decoder) throws {
    let fields = try decoder.container(keyedBy: CodingKeys.self)
    let start = try fields.decode(UInt.self, forKey: .start)
    let end = try fields.decode(UInt.self, forKey: .end)
    guard start <= end else {
      throw DecodingError.dataCorruptedError(forKey: .end, in: fields, debugDescription: "the range ends before it starts")
    }
    self.init(start: start, end: end)
  }
}

extension AddressRange {
  init(_ bytes: UnsafeMutableRawBufferPointer) {
    unsafe self.init(start: bytes.baseAddress.map { UInt(bitPattern: $0) } ?? 0, count: bytes.count)
  }
}
