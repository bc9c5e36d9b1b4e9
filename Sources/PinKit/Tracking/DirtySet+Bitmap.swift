extension DirtySet {
  /// The set as a bitmap: bit `page % 8` of byte `page / 8`, least significant first, padded with zeros to whole 64-bit words.
  /// It takes an eighth of a byte for every page there is, set or not.
  public func bitmap() -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: (pageCount / 64 + (pageCount % 64).signum()) * 8)
    for run in runs {
      var page = run.lowerBound
      while page < run.upperBound {
        if page & 7 == 0, run.upperBound - page >= 8 {
          bytes[page >> 3] = 0xff
          page += 8
        } else {
          bytes[page >> 3] |= 1 << UInt8(page & 7)
          page += 1
        }
      }
    }
    return bytes
  }

  /// Reads what ``bitmap()`` wrote.
  ///
  /// - Throws: ``PinError`` `.invalidArgument` if the length does not fit or a bit behind the last page is set.
  public init(pageCount: Int, bitmap: some Collection<UInt8>) throws(PinError) {
    self.init(pageCount: pageCount)
    guard pageCount >= 0, pageCount <= Int.max - 63, bitmap.count == (pageCount + 63) / 64 * 8 else {
      throw PinError(
        .invalidArgument, operation: "read a dirty bitmap",
        advice: "There are \(bitmap.count) bytes for \(pageCount) pages, instead of 8 for every 64 begun.")
    }
    for (index, byte) in bitmap.enumerated() where byte != 0 {
      for bit in 0..<8 where byte & (1 << UInt8(bit)) != 0 { append(index * 8 + bit..<index * 8 + bit + 1) }
    }
    guard (runs.last?.upperBound ?? 0) <= pageCount else {
      throw PinError(
        .invalidArgument, operation: "read a dirty bitmap", advice: "A bit behind the last page, \(pageCount - 1), is set.")
    }
  }
}
