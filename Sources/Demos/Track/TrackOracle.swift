internal import PinKit

/// The kernel's own word on which pages of a region were written, asked past the tracker (K1).
final class TrackOracle {
  private enum Source: ~Copyable {
    /// The mark that userfaultfd leaves in a page-table entry, which a write removes.
    case scan(PageMap)
    /// The first write to a page under mprotect makes its mapping writable.
    case maps
  }
  private let source: Source
  private let region: Region
  /// How it is asked, in a few words.
  let description: String
  /// Ask every so many intervals.
  let stride: Int

  /// `nil` where the kernel cannot be asked (`PAGEMAP_SCAN` came with Linux 6.7).
  init?(_ region: Region, _ mechanism: WriteTracking.Mechanism) {
    self.region = region
    if mechanism == .mprotect {
      source = .maps
      description = "the writable mappings in /proc/self/maps"
      stride = 4
    } else {
      guard let map = try? PageMap(), (try? map.scan(region.addresses, Self.query) { _, _ in }) != nil else { return nil }
      source = .scan(map)
      description = "PAGEMAP_SCAN"
      stride = 1
    }
  }

  /// Present without the mark, and not the zero page, which only a read maps.
  private static let query = PageMap.Query(required: [.written, .zeroFrame], inverted: .zeroFrame)

  /// The pages that were written since the last collection. Nobody may write meanwhile; pages that were discarded are not told.
  func written() throws -> DirtySet {
    var ranges: [AddressRange] = []
    switch source {
    case .scan(let map): try map.scan(region.addresses, Self.query) { range, _ in ranges.append(range) }
    case .maps:
      ranges = try ProcessMaps.mappings(in: region.addresses).filter(\.isWritable).map {
        $0.range.clamped(to: region.addresses)
      }
    }
    let runs = ranges.map { range in
      Int(range.start - region.addresses.start) / region.pageSize..<Int(range.end - region.addresses.start) / region.pageSize
    }
    return DirtySet(pageCount: region.pageCount, runs: runs)
  }
}
