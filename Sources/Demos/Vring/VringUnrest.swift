internal import Glibc
internal import PinKit
internal import Synchronization

/// What happens to the region while driver and device use it.
enum VringUnrest {
  struct Counts {
    var clones = 0
    var snapshots = 0
    var collections = 0
    var discards = 0
    var protections = 0
  }

  /// Clones, snapshots, collects and discards, one after the other.
  static func copy(_ exchange: VringExchange, _ tracker: WriteTracker) throws {
    let region = exchange.region
    var counts = Counts()
    while exchange.goesOn {
      let clone = try region.clone()
      try clone.store(UInt64.max, toByteOffset: VringExchange.payloadPages.lowerBound * VringExchange.pageSize)
      try clone.unmap()
      counts.clones += 1
      usleep(500)

      let snapshot = try region.snapshot()
      for page in [0, VringExchange.payloadPages.lowerBound] { _ = try snapshot.read(page) }
      snapshot.close()
      counts.snapshots += 1
      usleep(500)

      _ = try tracker.collect()
      counts.collections += 1

      let unused = VringExchange.unusedPages
      try region.store(UInt64.max, toByteOffset: unused.lowerBound * VringExchange.pageSize)
      try region.discard(unused)
      counts.discards += 1
      usleep(500)
    }
    let found = counts
    exchange.outcome.withLock {
      let protections = $0.unrest.protections
      $0.unrest = found
      $0.unrest.protections = protections
    }
  }

  /// Takes rights away from a few pages of the rings and buffers, and gives them back.
  static func protect(_ exchange: VringExchange) throws {
    var count = 0
    let pages = VringExchange.ringPages.lowerBound..<VringExchange.payloadPages.upperBound
    while exchange.goesOn {
      let first = Int.random(in: pages)
      let some = first..<min(pages.upperBound, first + Int.random(in: 1...6))
      try exchange.region.protect(some, to: Bool.random() ? .readOnly : .none)
      usleep(UInt32.random(in: 0...300))
      try exchange.region.protect(some, to: .readWrite)
      count += 1
      usleep(500)
    }
    let found = count
    exchange.outcome.withLock { $0.unrest.protections = found }
  }
}
