import Glibc
import Testing

@testable import PinKit

/// Random calls against a model that knows what every page holds, and what each open snapshot must.
@Suite("Snapshot model") struct SnapshotModelTests {
  struct Model: ~Copyable {
    private static let pageCount = 90
    private let region: Region
    private let mechanism: WriteTracking.Mechanism
    private let canDiscard: Bool
    private var random: SeededRandom
    private var versions = [UInt64](repeating: 0, count: pageCount)
    private var denied = [PageAccess](repeating: .readWrite, count: pageCount)
    private var open: [(snapshot: Snapshot, versions: [UInt64], released: Set<Int>)] = []
    private var tracker: WriteTracker?
    private var isPaused = false
    /// Pages that the next collection must have.
    private var dirty: Set<Int> = []
    /// By snapshot that was taken, also closed ones: the pages that were changed since.
    private var history: [(snapshot: Snapshot, changed: Set<Int>)] = []
    private var lastVersion: UInt64 = 0

    init(_ region: Region, _ combination: Combination, seed: UInt64) {
      self.region = region
      mechanism = combination.mechanism
      canDiscard = combination.subject.canDiscard
      random = SeededRandom(seed: seed)
    }

    private mutating func run() -> Range<Int> {
      let start = Int.random(in: 0..<Self.pageCount, using: &random)
      return start..<min(Self.pageCount, start + (random.chance(70) ? 1 : Int.random(in: 1...30, using: &random)))
    }

    private mutating func note(_ pages: some Sequence<Int>) {
      for page in pages {
        dirty.insert(page)
        for index in history.indices { history[index].changed.insert(page) }
      }
    }

    mutating func step() throws {
      Tally.add(.operations)
      switch Int.random(in: 0..<100, using: &random) {
      case ..<38: try write()
      case ..<46: try take()
      case ..<64: try check(Int.random(in: 0..<max(1, open.count), using: &random))
      case ..<72: close()
      case ..<79: try protect()
      case ..<85: try discard()
      case ..<88: try release()
      case ..<96: try track()
      default: if open.isEmpty { try end() }
      }
    }

    private mutating func write() throws {
      lastVersion += 1
      let pages = run().filter { denied[$0] == .readWrite }
      try region.write(version: lastVersion, to: pages)
      for page in pages { versions[page] = lastVersion }
      note(pages)
    }

    private mutating func take() throws {
      var options = SnapshotOptions(mechanism: random.chance(50) ? .automatic : mechanism, sweep: random.chance(30))
      if let tracker, tracker.mechanism == .asynchronous {
        options.mechanism = mechanism
        // It changes over, and everything populated is reported.
      } else if open.isEmpty, history.isEmpty, tracker == nil {
        options.mechanism = mechanism
      }
      let snapshot = try region.snapshot(options)
      for (older, changed) in history {
        let changes = try snapshot.changes(since: older)
        try #require(changed.isSubset(of: Set(changes.pages)))
      }
      open.append((snapshot, versions, []))
      history.append((snapshot, []))
      if history.count > 5 { history.removeFirst() }
    }

    private mutating func check(_ index: Int) throws {
      guard index < open.count else { return }
      let (snapshot, versions, released) = open[index]
      var rest = 0..<Self.pageCount
      if random.chance(60) { rest = run() }
      let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096 * Self.pageCount, alignment: 8)
      defer { unsafe buffer.deallocate() }
      for pages in [rest] + (random.chance(20) ? (0..<Self.pageCount).map { $0..<$0 + 1 } : []) {
        let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<(pages.count * 4096)])
        let found = code { unsafe try snapshot.copy(pages, into: bytes) }
        if pages.contains(where: released.contains) {
          try #require(found == .released)
          continue
        }
        try #require(found == nil, "\(String(describing: snapshot.failure))")
        for page in pages {
          let place = (page - pages.lowerBound) * 4096
          let slice = unsafe UnsafeRawBufferPointer(rebasing: bytes[place..<place + 4096])
          let matches = unsafe Pattern.matches(slice, page, versions[page])
          try #require(matches, "page \(page) is not in version \(versions[page])")
        }
      }
      let stored = Set(try snapshot.storedRuns().joined())
      try #require(stored.isDisjoint(with: released))
      for page in 0..<Self.pageCount where versions[page] != 0 && !released.contains(page) {
        try #require(stored.contains(page))
      }
    }

    private mutating func close() {
      guard !open.isEmpty else { return }
      let index = Int.random(in: 0..<open.count, using: &random)
      open.remove(at: index).snapshot.close()
    }

    private mutating func protect() throws {
      let pages = run()
      let access = [PageAccess.none, .readOnly, .readWrite, .readWrite].randomElement(using: &random)!
      try region.protect(pages, to: access)
      for page in pages { denied[page] = access }
    }

    private mutating func discard() throws {
      let pages = run()
      guard canDiscard, pages.allSatisfy({ denied[$0] == .readWrite }) else { return }
      try region.discard(pages)
      for page in pages { versions[page] = 0 }
      note(pages)
    }

    private mutating func release() throws {
      guard !open.isEmpty else { return }
      let index = Int.random(in: 0..<open.count, using: &random)
      let pages = run()
      try open[index].snapshot.release(pages)
      open[index].released.formUnion(pages)
    }

    private mutating func track() throws {
      guard let tracker else {
        // Only where nothing else protects the region is there a choice.
        let isFree = open.isEmpty && history.isEmpty
        self.tracker = try region.trackWrites(isFree && random.chance(40) && canDiscard ? .asynchronous : .automatic)
        (isPaused, dirty) = (false, [])
        return
      }
      switch Int.random(in: 0..<6, using: &random) {
      case 0:
        try tracker.stop()
        self.tracker = nil
      case 1 where !isPaused:
        let set = try tracker.collect()
        try #require(dirty.isSubset(of: Set(set.pages)))
        try tracker.pause()
        isPaused = true
      case 1:
        try tracker.resume()
        (isPaused, dirty) = (false, [])
      default:
        if isPaused { return }
        let set = try tracker.collect()
        try #require(dirty.isSubset(of: Set(set.pages)))
        try #require(set.exactPages.pages.allSatisfy(dirty.contains))
        dirty = []
      }
    }

    private mutating func end() throws {
      try region.endSnapshots()
      history = []
    }

    mutating func finish() throws {
      for index in open.indices { try check(index) }
      if random.chance(50) {
        try region.unmap()
        for index in open.indices { try check(index) }
      }
    }
  }

  @Test(
    "W6/W5: what snapshots hold, whatever is called in between",
    arguments: Combination.snapshots.filter { $0.subject != .hugetlb })
  func model(_ combination: Combination) throws {
    let seed = Seed.base
    for round in 0..<6 {
      let space = try AddressSpace.forTests()
      try combination.subject.with(space, pages: 90) { region in
        var model = Model(region, combination, seed: seed &+ UInt64(round))
        do {
          for _ in 0..<150 { try model.step() }
          try model.finish()
        } catch {
          Issue.record("seed \(seed), round \(round): \(error)")
          throw error
        }
      }
      try space.close()
    }
  }
}
