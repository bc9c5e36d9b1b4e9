internal import Foundation
internal import Glibc
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
    var pages: [Frame: (mappings: Int, places: [UInt])] = [:]
    for region in regions {
      for page in 0..<region.pageCount {
        let state = try region.frameState(page)
        pages[state.frame, default: (state.counts.mappings, [])].places.append(
          region.addresses.start / UInt(region.pageSize) + UInt(page))
      }
    }
    var differing: [Difference] = []
    var patience = 10_000
    for (frame, page) in pages {
      guard let kernel = try count(page.places, map, counts, &patience) else {
        return .unreadable(reason: "the kernel hides frame numbers from this process")
      }
      if kernel != page.mappings {
        differing.append(Difference(frame: frame.number, ours: page.mappings, kernel: kernel))
      }
    }
    return .compared(frames: pages.count, differing: differing.sorted { $0.frame < $1.frame })
  }

  /// How often the kernel says the page of memory is mapped that is at all of `places`, which are page numbers; 0 if they have no page in
  /// common, `nil` if it does not say. The kernel may move the page at any moment (compaction): then it is asked again.
  private static func count(
    _ places: [UInt], _ map: FileHandle, _ counts: FileHandle, _ patience: inout Int
  ) throws -> Int? {
    while true {
      let before = try places.map { try words(of: map, at: $0, count: 1)[0] }
      let physical = before[0] & ((1 << 55) - 1)
      let isWhole = before.allSatisfy { $0 >> 63 == 1 && $0 & ((1 << 55) - 1) == physical }
      if isWhole, physical == 0 { return nil }
      let count = isWhole ? try words(of: counts, at: UInt(physical), count: 1)[0] : 0
      let after = try places.map { try words(of: map, at: $0, count: 1)[0] }
      if isWhole, after == before { return Int(count) }
      if patience <= 0 { return 0 }
      patience -= 1
      usleep(100)
    }
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
