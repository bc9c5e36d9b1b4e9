extension Region {
  /// Whether ``protect(_:to:)`` left what is needed on every one of `pages`.
  ///
  /// - Throws: ``PinError`` `.accessDenied`.
  @inline(__always) func requireRights(
    _ pages: Range<Int>, forWriting: Bool, _ operation: StaticString
  ) throws(PinError) {
    if table.hasDeniedPages { try lookForRights(pages, forWriting: forWriting, operation) }
  }

  @inline(never) private func lookForRights(
    _ pages: Range<Int>, forWriting: Bool, _ operation: StaticString
  ) throws(PinError) {
    for page in pages {
      let entry = table[page]
      guard entry.contains(.readDenied) || (forWriting && entry.contains(.writeDenied)) else { continue }
      throw PinError(
        .accessDenied, operation: "\(operation) page \(page)", range: addressesUnchecked(of: page..<page + 1),
        advice: "protect(_:to:) took the right to \(forWriting ? "write" : "read") away.")
    }
  }
}
