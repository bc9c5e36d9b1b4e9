internal import Foundation
internal import PinKit

/// The kernel's own map counts, from `/proc/self/pagemap` and `/proc/kpagecount` (K1). Both need root.
enum CowKernelCounts {
  struct Difference: Equatable {
    var frame: Int
    var ours: Int
    var kernel: Int
  }
  enum Comparison {
    case compared(frames: Int, differing: [Difference])
    case unreadable(reason: String)
  }

  /// Compares every frame of `regions`, all of whose pages have been touched. The pool itself maps none of them as long as nobody has
  /// pinned a page.
  static func compare(_ regions: [Region]) throws -> Comparison {
    guard let counts = FileHandle(forReadingAtPath: "/proc/kpagecount") else {
      return .unreadable(reason: "it is root's alone")
    }
    guard let map = FileHandle(forReadingAtPath: "/proc/self/pagemap") else {
      return .unreadable(reason: "/proc/self/pagemap cannot be opened")
    }
    var pages: [Frame: (mappings: Int, physical: UInt64)] = [:]
    var differing: [Difference] = []
    for region in regions {
      let entries = try words(of: map, at: region.addresses.start / UInt(region.pageSize), count: region.pageCount)
      for (page, entry) in entries.enumerated() {
        let state = try region.frameState(page)
        let physical = entry & ((1 << 55) - 1)
        let isPresent = entry >> 63 == 1
        if isPresent, physical == 0 { return .unreadable(reason: "the kernel hides frame numbers from this process") }
        let known = pages.updateValue((state.counts.mappings, physical), forKey: state.frame)
        // One frame is one page of memory, and is where its region maps it.
        if !isPresent || (known.map { $0.physical != physical } ?? false) {
          differing.append(Difference(frame: state.frame.number, ours: state.counts.mappings, kernel: 0))
        }
      }
    }
    for (frame, page) in pages {
      guard let kernel = try words(of: counts, at: UInt(page.physical), count: 1).first else { continue }
      if Int(kernel) != page.mappings {
        differing.append(Difference(frame: frame.number, ours: page.mappings, kernel: Int(kernel)))
      }
    }
    return .compared(frames: pages.count, differing: differing.sorted { $0.frame < $1.frame })
  }

  private static func words(of file: FileHandle, at index: UInt, count: Int) throws -> [UInt64] {
    try file.seek(toOffset: UInt64(index) * 8)
    let data = try file.read(upToCount: count * 8) ?? Data()
    let words = unsafe data.withUnsafeBytes { bytes in
      (0..<bytes.count / 8).map { unsafe bytes.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self) }
    }
    guard words.count == count else { throw CocoaError(.fileReadCorruptFile) }
    return words
  }
}
