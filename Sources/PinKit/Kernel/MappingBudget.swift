internal import Synchronization

/// How many mappings PinKit may cut memory into under mprotect: half of what the rest of the process leaves of `vm.max_map_count` (K7), so
/// that the program can go on mapping memory and starting threads.
///
/// The fault path counts cuts as it makes them, and whoever protects the pages again takes them off. What else there is mapped is read from
/// `/proc/self/maps` when tracking starts and every few seconds; without `/proc` it counts as nothing.
enum MappingBudget {
  private static let limit = Atomic<Int>(65_530)
  private static let others = Atomic<Int>(0)
  private static let cuts = Atomic<Int>(0)
  /// How often cuts were taken off, or are about to be.
  private static let mergers = Atomic<UInt64>(0)
  private static let lookedAt = Atomic<UInt64>(0)
  private static let generation = Atomic<UInt32>(0)
  /// In nanoseconds.
  private static let interval: UInt64 = 5_000_000_000

  /// Whether there should be no more cuts. Async-signal-safe once ``look()`` has run. Who goes by older numbers makes a cut too many, for which
  /// there is room, or opens more pages than it needs.
  @inline(__always) static var isSpent: Bool {
    cuts.load(ordering: .relaxed) >= max(0, limit.load(ordering: .relaxed) - others.load(ordering: .relaxed)) / 2
  }

  static func add(_ count: Int) { cuts.add(count, ordering: .relaxed) }

  /// The mappings of so many cuts are merged again.
  static func subtract(_ count: Int) {
    if count == 0 { return }
    mergers.add(1, ordering: .relaxed)
    cuts.subtract(count, ordering: .releasing)
  }

  /// Counts what is mapped. Not for the fault path.
  static func look() {
    lookedAt.store(Kernel.now(), ordering: .relaxed)
    // A child of fork() has none of its parent's regions.
    let now = Kernel.forkGeneration
    if generation.exchange(now, ordering: .relaxed) != now { cuts.store(0, ordering: .relaxed) }
    limit.store(ProcessMaps.maximumCount, ordering: .relaxed)
    // Mappings that were counted and have merged since would be taken for those of others. What was known stays if that happens each time.
    for _ in 0..<4 {
      let before = mergers.load(ordering: .acquiring)
      guard let count = ProcessMaps.count() else { return }
      TestHooks.reach(.mappingsCounted)
      let own = cuts.load(ordering: .acquiring)
      // Whoever took cuts off that `own` is without has counted that before: it is seen here.
      if mergers.load(ordering: .relaxed) == before {
        others.store(max(0, count - own), ordering: .relaxed)
        return
      }
    }
  }

  /// The same, if it was not done lately. Who sees late that it was does it again.
  static func lookNowAndThen() {
    if Kernel.now() - lookedAt.load(ordering: .relaxed) >= interval { look() }
  }
}
