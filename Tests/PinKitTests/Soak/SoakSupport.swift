import Glibc
import Testing

@testable import PinKit

/// What a run of random operations is made of.
struct SoakPlan: Sendable {
  var combination: Combination
  var seed: UInt64
  /// By all writers together.
  var operations: Int
  var pageCount = 96
  var writers = 3
  var faultAround = FaultAroundPolicy.exact
  /// In per cent of a writer's operations; what remains is writing.
  var reads = 10
  var protects = 6
  var discards = 4
  /// Whether trackers pause, and come and go, beside the first.
  var otherTrackers = true
  /// Whether the process forks and spawns meanwhile, and the region is unmapped under its writers.
  var upheavals = true

  var slots: [Int] {
    let last = combination.subject.pageSize - 8
    return [0, combination.subject.pageSize / 2 - 8, last]
  }
}

/// One thread's part: it owns every page whose index is its own modulo the number of writers.
///
/// Unchecked: one thread at a time uses it.
final class SoakWriter: @unchecked Sendable {
  private let plan: SoakPlan
  private let index: Int
  private var random: SeededRandom
  private var values: [Int: [UInt64]] = [:]
  private var access: [Int: PageAccess] = [:]
  private var last: UInt64 = 0

  init(_ plan: SoakPlan, index: Int, seed: UInt64) {
    self.plan = plan
    self.index = index
    random = SeededRandom(seed: seed)
  }

  /// False once the region is unmapped.
  func run(_ operations: Int, _ region: Region, _ log: ChangeLog, _ findings: Findings) throws -> Bool {
    for _ in 0..<operations {
      do { try step(region, log, findings) } catch let error as PinError where error.code == .unmapped { return false }
    }
    return true
  }

  private func step(_ region: Region, _ log: ChangeLog, _ findings: Findings) throws {
    let page = Int.random(in: 0..<plan.pageCount / plan.writers, using: &random) * plan.writers + index
    switch Int.random(in: 0..<100, using: &random) {
    case ..<plan.reads: try read(page, region, findings)
    case ..<(plan.reads + plan.protects): try protect(page, region)
    case ..<(plan.reads + plan.protects + plan.discards) where plan.combination.subject.canDiscard:
      try discard(page, region, log, findings)
    default: try write(page, region, log, findings)
    }
  }

  private func write(_ page: Int, _ region: Region, _ log: ChangeLog, _ findings: Findings) throws {
    let slot = Int.random(in: 0..<3, using: &random)
    let offset = page * region.pageSize + plan.slots[slot]
    last += 1
    let value = last
    guard access[page] ?? .readWrite == .readWrite else {
      return try expectDenied("store to page \(page)", findings) { try region.store(value, toByteOffset: offset) }
    }
    try log.change(page) {
      if random.chance(40) {
        try unsafe region.withUnsafeMutableBytes { unsafe $0.storeBytes(of: value, toByteOffset: offset, as: UInt64.self) }
      } else {
        try region.store(value, toByteOffset: offset)
      }
      values[page, default: [0, 0, 0]][slot] = value
    }
  }

  private func read(_ page: Int, _ region: Region, _ findings: Findings) throws {
    let slot = Int.random(in: 0..<3, using: &random)
    let offset = page * region.pageSize + plan.slots[slot]
    if access[page] == PageAccess.none {
      return try expectDenied("load from page \(page)", findings) {
        _ = try region.load(fromByteOffset: offset, as: Int.self)
      }
    }
    let found = try region.load(fromByteOffset: offset, as: UInt64.self)
    let expected = values[page]?[slot] ?? 0
    if found != expected { findings.note("page \(page), slot \(slot) holds \(found), its writer wrote \(expected)") }
  }

  private func protect(_ page: Int, _ region: Region) throws {
    let choices: [PageAccess] = [.none, .readOnly, .readWrite, .readWrite]
    let wanted = choices.randomElement(using: &random)!
    try region.protect(page..<page + 1, to: wanted)
    access[page] = wanted
  }

  private func discard(_ page: Int, _ region: Region, _ log: ChangeLog, _ findings: Findings) throws {
    guard access[page] ?? .readWrite == .readWrite else {
      return try expectDenied("discard of page \(page)", findings) { try region.discard(page..<page + 1) }
    }
    try log.change(page) {
      try region.discard(page..<page + 1)
      values[page] = nil
    }
  }

  private func expectDenied(_ what: String, _ findings: Findings, _ body: () throws -> Void) throws {
    do { try body() } catch let error as PinError where error.code == .accessDenied { return }
    findings.note("\(what) went through, though it was denied")
  }
}

/// Runs a plan: rounds of writing beside a checker that collects, and a comparison after each round, when the writers rest.
struct SoakModel: ~Copyable {
  private let plan: SoakPlan
  private let findings = Findings()
  private var random: SeededRandom
  private var done = 0
  private(set) var collections = 0

  private static let operationsOfARound = 240

  init(_ plan: SoakPlan) {
    self.plan = plan
    random = SeededRandom(seed: plan.seed)
  }

  mutating func run() throws {
    // Every other plan in slices of four small pages and more.
    let space = try AddressSpace.forTests(
      slices: plan.seed.isMultiple(of: 2) ? .automatic : RegionSlices(smallest: 16 << 10, most: 8))
    while done < plan.operations, findings.isEmpty {
      let plan = plan
      try plan.combination.subject.with(space, pages: plan.pageCount) { try live($0) }
    }
    try space.close()
    for finding in findings.all { Issue.record("\(finding) (\(plan.combination.testDescription), seed \(plan.seed))") }
  }

  /// The life of one mapping.
  private mutating func live(_ region: Region) throws {
    let writers = (0..<plan.writers).map { SoakWriter(plan, index: $0, seed: random.next()) }
    let log = ChangeLog(pageCount: plan.pageCount)
    var view = try makeView(region, log)
    defer { collections += view.collections }
    let rounds = Int.random(in: 4...24, using: &random)
    for round in 0..<rounds where done < plan.operations && findings.isEmpty {
      let unmaps = plan.upheavals && round == rounds - 1 && random.chance(50)
      let operations = min(Self.operationsOfARound, plan.operations - done)
      done += operations
      Tally.add(.operations, operations)
      let threads = writers.map { [findings] writer in
        TestThread { _ = try writer.run((operations + 2) / 3, region, log, findings) }
      }
      do {
        if unmaps { return try unmapUnder(threads, region) }
        try check(threads, region, log, &view)
      } catch {
        for thread in threads { try? thread.join() }
        throw error
      }
      for thread in threads { try thread.join() }
      try view.compare("after round \(round)")
    }
    try view.stop()
  }

  private func makeView(_ region: Region, _ log: ChangeLog) throws -> ShadowView {
    try ShadowView(
      region, plan.combination.mechanism, .init(faultAround: plan.faultAround), log: log, slots: plan.slots,
      findings: findings, mayRepeat: plan.combination.mayRepeat)
  }

  private mutating func check(
    _ threads: [TestThread], _ region: Region, _ log: ChangeLog, _ view: inout ShadowView
  ) throws {
    var other: ShadowView?
    while threads.contains(where: { !$0.hasEnded }) {
      switch Int.random(in: 0..<1000, using: &random) {
      case ..<8 where plan.otherTrackers: try view.pauseForAMoment()
      case ..<100 where plan.otherTrackers:
        if other == nil {
          other = try makeView(region, log)
        } else if random.chance(30) {
          try other?.stop()
          other = nil
        } else {
          try other?.collect()
        }
      case ..<102 where plan.upheavals: #expect(Fork.run() == 0)
      case ..<104 where plan.upheavals: #expect(Fork.spawn() == 0)
      default: try view.collect()
      }
    }
    for thread in threads { try thread.join() }
    if other != nil {
      try other?.compare("second tracker")
      try other?.stop()
    }
  }

  private mutating func unmapUnder(_ threads: [TestThread], _ region: Region) throws {
    for _ in 0..<Int.random(in: 0...3, using: &random) { sched_yield() }
    try region.unmap()
    for thread in threads { try thread.join() }
    let error = #expect(throws: PinError.self) { try region.load(fromByteOffset: 0, as: UInt8.self) }
    #expect(error?.code == .unmapped)
  }
}
