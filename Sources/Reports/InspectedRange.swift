internal import PinKit

/// What the user wants to see of a process.
package struct InspectedRange: Hashable {
  let start: UInt
  /// `nil`: to the end of the mapping, and from its beginning.
  let end: UInt?

  package init?(argument: String) {
    let parts = argument.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false).map(Self.address)
    guard parts.count <= 2, let first = parts[0] else { return nil }
    start = first
    guard parts.count == 2 else {
      end = nil
      return
    }
    guard let last = parts[1], last > first else { return nil }
    end = last
  }

  private static func address(_ text: Substring) -> UInt? {
    UInt(text.hasPrefix("0x") ? text.dropFirst(2) : text, radix: 16)
  }

  /// Whole pages of what is mapped there: from the first mapping in the range to the last.
  ///
  /// - Throws: ``PinError`` `.outOfBounds` where nothing is mapped.
  func resolved(_ mappings: [ProcessMapping]) throws(PinError) -> AddressRange {
    let inside = mappings.map(\.range).filter { $0.start < end ?? start &+ 1 && start < $0.end }
    // The kernel's own page at the top of all addresses is shown only by itself.
    let ordinary = inside.filter { $0.end <= 1 << 63 }
    let shown = ordinary.isEmpty ? inside : ordinary
    guard let first = shown.first, let last = shown.last else {
      throw PinError(
        .outOfBounds, operation: "inspect 0x\(String(start, radix: 16))",
        advice: "The process maps nothing there; without a range, pinctl lists what it maps.")
    }
    let whole = AddressRange(start: first.start, end: last.end)
    guard let end else { return whole }
    let pageSize = UInt(ObservedPages.pageSize)
    let wanted = AddressRange(start: start, end: end).clamped(to: whole)
    return AddressRange(start: wanted.start / pageSize * pageSize, end: (wanted.end - 1) / pageSize * pageSize + pageSize)
  }
}
