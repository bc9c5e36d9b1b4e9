internal import Synchronization

/// Preallocated counters that the fault path increments: atomics in sixteen shards, chosen by the thread's stack, so that threads
/// seldom share a cache line. Nothing is decided by them: a sum of words that were read one after the other is as good as any.
@safe struct FaultCounters: @unchecked Sendable {  // words are touched through atomics only
  enum Counter: Int, CaseIterable {
    case handlerThreadFaults, inPlaceFaults, mprotectFaults
    case openedPages, faultAroundPages
    case alreadyOpen, retries, wakes, unexplained
    case sharedWaits, exclusiveWaits, deferredBatches
    case batches, messages
    case removeEvents, unmapEvents, remapEvents, unknownEvents
    case widenedOpenings
    case readerErrors
    case minorFaults
    case reuses, copies, spuriousCopies
    case capturedPages, heldWrites
    case missingFaults, suppliedPages, refusedPages, writtenPages, reclaimedPages
    case sealedPages, openedSeals, poisonedPages
    case collections, collectedPages, snapshots, clones
  }

  /// Latencies are counted in buckets of a quarter of a power of two of nanoseconds.
  static let bucketCount = 160
  private static let shards = 16
  private static let stride = 208  // words a shard: counters, then buckets

  private let words: UnsafeMutablePointer<Atomic<UInt64>>

  init() {
    let raw = UnsafeMutableRawPointer.allocate(byteCount: Self.shards * Self.stride * 8, alignment: 128)
    unsafe raw.initializeMemory(as: UInt8.self, repeating: 0, count: Self.shards * Self.stride * 8)
    unsafe words = raw.bindMemory(to: Atomic<UInt64>.self, capacity: Self.shards * Self.stride)
  }

  func deallocate() { unsafe words.deallocate() }

  @inline(__always) private static func shard() -> Int {
    var local = UInt8(0)
    let address = unsafe withUnsafePointer(to: &local) { UInt(bitPattern: $0) }
    // Stacks of threads lie side by side, 8 MiB each as a rule, or 2.
    return Int((address >> 21 ^ address >> 23) & UInt(shards - 1))
  }

  @inline(__always) func add(_ counter: Counter, _ amount: Int = 1) {
    unsafe words[Self.shard() * Self.stride + counter.rawValue].add(UInt64(amount), ordering: .relaxed)
  }

  @inline(__always) func addLatency(_ nanoseconds: UInt64) {
    let index = Self.shard() * Self.stride + Counter.allCasesCount + Self.bucket(nanoseconds)
    unsafe words[index].add(1, ordering: .relaxed)
  }

  subscript(counter: Counter) -> UInt64 {
    (0..<Self.shards).reduce(0) { sum, shard in
      unsafe sum + words[shard * Self.stride + counter.rawValue].load(ordering: .relaxed)
    }
  }

  /// How many latencies fell into each bucket.
  func latencies() -> [UInt64] {
    (0..<Self.bucketCount).map { bucket in
      (0..<Self.shards).reduce(0) { sum, shard in
        unsafe sum + words[shard * Self.stride + Counter.allCasesCount + bucket].load(ordering: .relaxed)
      }
    }
  }

  @inline(__always) static func bucket(_ nanoseconds: UInt64) -> Int {
    guard nanoseconds >= 4 else { return Int(nanoseconds) }
    let power = 63 - nanoseconds.leadingZeroBitCount
    return min(bucketCount - 1, power * 4 - 4 + Int((nanoseconds >> UInt64(power - 2)) & 3))
  }

  /// The middle of a bucket, in nanoseconds.
  static func middle(of bucket: Int) -> UInt64 {
    guard bucket >= 4 else { return UInt64(bucket) }
    let power = UInt64(bucket / 4 + 1)
    return (4 + UInt64(bucket % 4)) << (power - 2) + (1 << (power - 2)) / 2
  }
}

extension FaultCounters.Counter {
  @inline(__always) static var allCasesCount: Int { 48 }
}
