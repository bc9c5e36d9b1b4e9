/// What the pages of a region are made of, as the statistics tell them apart.
enum PageClass: Int, CaseIterable {
  case anonymous, pool, file, hugetlb, adopted
}

extension Backing {
  var pageClass: PageClass {
    switch kind {
    case .anonymous: .anonymous
    case .pool: .pool
    case .file: .file
    case .hugetlb: .hugetlb
    case .adopted: .adopted
    }
  }
}

extension Region {
  var counters: FaultCounters { space.counters.of(backing.pageClass) }
}

/// The counters of an address space, apart for each class of pages: the fault path has those of its region at hand.
struct SpaceCounters: Sendable {
  private let sets = PageClass.allCases.map { _ in FaultCounters() }

  func deallocate() { for set in sets { set.deallocate() } }

  func of(_ pageClass: PageClass) -> FaultCounters { sets[pageClass.rawValue] }

  /// Of all classes together.
  subscript(counter: FaultCounters.Counter) -> UInt64 { sets.reduce(0) { $0 + $1[counter] } }

  /// How many latencies fell into each bucket.
  func latencies() -> [UInt64] {
    sets.reduce(into: [UInt64](repeating: 0, count: FaultCounters.bucketCount)) { sum, set in
      for (bucket, times) in set.latencies().enumerated() { sum[bucket] += times }
    }
  }
}
