internal import Synchronization

/// How a large region is cut into slices, each registered with a userfaultfd of its own.
///
/// To the kernel a userfaultfd is one queue, and a mapping is one lock: writers on many processors stand in line for either, whatever pages
/// they write. Mappings that are registered with different descriptors never merge, so that each slice is one of its own. Nothing else tells them
/// apart: whatever is done to the region is done slice by slice.
struct RegionSlices: Sendable {
  /// In bytes. A multiple of the size of huge pages.
  var smallest: Int
  /// As many as processors, unless given.
  var most: Int?

  /// All pages of a region in one slice.
  static let whole = Int.bitWidth - 2
  static let automatic = RegionSlices(smallest: 32 << 20, most: nil)

  /// How many there may be. More than sixteen do not make anything faster: then the kernel's lock on the address space is what writers wait for.
  var limit: Int { max(1, min(most ?? Kernel.processorCount, 16)) }

  /// The same for good: how many processors a thread may use is its own, and may change, and all extents of a region are cut alike.
  var settled: RegionSlices { RegionSlices(smallest: smallest, most: limit) }

  /// By how many bits a page's number is shifted to become that of its slice.
  func shift(addresses: AddressRange, pageSize: Int) -> Int {
    // A boundary inside of a huge page would be its end.
    let hasHugePages = smallest >= 2 << 20
    guard !hasHugePages || addresses.start.isMultiple(of: 2 << 20) else { return Self.whole }
    return shift(pageCount: addresses.count / pageSize, pageSize: pageSize)
  }

  /// The same for memory that begins with a huge page, if it has any.
  func shift(pageCount: Int, pageSize: Int = Memory.pageSize) -> Int {
    let most = limit
    guard most > 1, pageCount * pageSize >= 2 * smallest else { return Self.whole }
    var shift = Int.bitWidth - 1 - max(1, smallest / pageSize).leadingZeroBitCount
    while (pageCount - 1) >> shift + 1 > most { shift += 1 }
    return (pageCount - 1) >> shift == 0 ? Self.whole : shift
  }
}

/// How many slices more than regions, and files more than pools, there may be in the process: each takes two descriptors, and a slice a mapping.
enum SliceBudget {
  private static let used = Atomic<Int>(0)

  /// False if there are too many: then there is one.
  static func take(_ count: Int) -> Bool {
    if count == 0 { return true }
    let most = min(Kernel.descriptorLimit / 16, ProcessMaps.maximumCount / 64)
    let before = used.add(count, ordering: .relaxed).oldValue
    if before + count <= most { return true }
    giveBack(count)
    return false
  }

  static func giveBack(_ count: Int) { used.subtract(count, ordering: .relaxed) }
}
