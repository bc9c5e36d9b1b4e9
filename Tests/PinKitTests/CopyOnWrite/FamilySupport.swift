import Glibc
import Synchronization
import Testing

@testable import PinKit

/// The code of the error that `body` throws.
func errorCode(_ body: () throws -> Void) -> PinError.Code? {
  do { try body() } catch { return (error as? PinError)?.code }
  return nil
}

/// What a run of random operations on a family of clones is made of.
struct FamilyPlan: Sendable {
  var policy: ReusePolicy
  var mechanism: WriteTracking.Mechanism
  var seed: UInt64
  var rounds = 12
  var pageCount = 48
  var writers = 2
  var operations = 40
  var members = 5
  /// Whether an `.exact` tracker watches the first region.
  var tracks = false
  var forks = false

  static let slots = [0, 2040, 4088]
  var slotCount: Int { pageCount * Self.slots.count }
}

/// What one writer has done to a region, in its order: entries are made before the operation begins.
final class FamilyLog: Sendable {
  struct Operation: Sendable {
    /// From one counter for all writers of all regions: what had a lower one and is not its writer's last was complete before.
    var stamp: UInt64
    /// `page * 3 + slot`; all three for a discard.
    var slots: Range<Int>
    var value: UInt64
  }
  private let list = Mutex<[Operation]>([])
  private let done = Atomic<Int>(0)

  var finished: Int { done.load(ordering: .sequentiallyConsistent) }
  var operations: [Operation] { list.withLock { $0 } }
  func begin(_ operation: Operation) { list.withLock { $0.append(operation) } }
  func end() { done.add(1, ordering: .sequentiallyConsistent) }
  func reset() {
    list.withLock { $0 = [] }
    done.store(0, ordering: .sequentiallyConsistent)
  }
}

/// A region of the family and what it must hold: what it began with, and its writers' logs. Page `p` belongs to writer `p % writers`.
///
/// Unchecked: `content` is the main thread's alone.
final class FamilyMember: @unchecked Sendable {
  let region: Region
  let logs: [FamilyLog]
  let changes: ChangeLog
  var content: [UInt64]

  init(_ region: Region, content: [UInt64], writers: Int) {
    self.region = region
    self.content = content
    logs = (0..<writers).map { _ in FamilyLog() }
    changes = ChangeLog(pageCount: region.pageCount)
  }

  static func read(_ region: Region) throws -> [UInt64] {
    try unsafe region.withUnsafeMutableBytes { bytes in
      (0..<region.pageCount).flatMap { page in
        FamilyPlan.slots.map { unsafe bytes.load(fromByteOffset: page * 4096 + $0, as: UInt64.self) }
      }
    }
  }

  /// With every writer at rest: the region holds exactly what its own history says.
  func compare(_ moment: String, _ findings: Findings) throws {
    for log in logs {
      for operation in log.operations { for slot in operation.slots { content[slot] = operation.value } }
      log.reset()
    }
    let found = try Self.read(region)
    for slot in content.indices where found[slot] != content[slot] {
      findings.note("\(moment): page \(slot / 3), slot \(slot % 3) holds \(found[slot]), its history says \(content[slot])")
    }
  }

  /// Whether the pages of a writer hold the same.
  private func isEqual(_ state: [UInt64], _ found: [UInt64], of writer: Int) -> Bool {
    for slot in state.indices where (slot / 3) % logs.count == writer && state[slot] != found[slot] { return false }
    return true
  }

  /// Checks that `found` is what the region held at one moment after each writer had finished `finished` operations.
  func checkCut(_ found: [UInt64], finished: [Int], _ findings: Findings) {
    let all = logs.map(\.operations)
    var shortest: [Int] = []
    var longest: [Int] = []
    for (writer, operations) in all.enumerated() {
      var state = content
      var matches: [Int] = []
      for done in 0...operations.count {
        if done > 0 { for slot in operations[done - 1].slots { state[slot] = operations[done - 1].value } }
        guard done >= finished[writer] else { continue }
        let isEqual = isEqual(state, found, of: writer)
        if isEqual { matches.append(done) }
      }
      guard let first = matches.first, let last = matches.last else {
        findings.note(
          "the clone holds no moment of writer \(writer), who had finished \(finished[writer]) of \(operations.count) operations"
        )
        return
      }
      shortest.append(first)
      longest.append(last)
    }
    for (writer, count) in shortest.enumerated() where count > 0 {
      let stamp = all[writer][count - 1].stamp
      for (other, operations) in all.enumerated() where other != writer {
        // All but the last that began before were complete.
        let complete = operations.prefix { $0.stamp < stamp }.count - 1
        if longest[other] < complete {
          findings.note("the clone holds operation \(count) of writer \(writer), and not an earlier one of writer \(other)")
        }
      }
    }
  }
}

/// A tracker of a member, and its shadow.
final class FamilyView {
  private var view: ShadowView

  init(_ member: FamilyMember, _ plan: FamilyPlan, _ findings: Findings) throws {
    view = try ShadowView(
      member.region, plan.mechanism, .init(), log: member.changes, slots: FamilyPlan.slots, findings: findings)
  }

  func collect() throws { try view.collect() }
  func end(_ moment: String) throws {
    try view.compare(moment)
    try view.stop()
  }
}

/// A reference that is held open for a while.
final class HeldReference: Sendable {
  private let reference: FrameReference
  init(_ reference: consuming FrameReference) { self.reference = reference }
}

/// One thread's part.
///
/// Unchecked: one thread at a time uses it.
final class FamilyWriter: @unchecked Sendable {
  private static let stamps = Atomic<UInt64>(0)
  private let plan: FamilyPlan
  private let member: FamilyMember
  private let index: Int
  private let findings: Findings
  private var random: SeededRandom
  private var held: [HeldReference] = []

  init(_ plan: FamilyPlan, _ member: FamilyMember, index: Int, seed: UInt64, _ findings: Findings) {
    self.plan = plan
    self.member = member
    self.index = index
    self.findings = findings
    random = SeededRandom(seed: seed)
  }

  func run() throws {
    defer { held = [] }
    for _ in 0..<plan.operations {
      do { try step() } catch let error as PinError where error.code == .unmapped { return }
    }
  }

  private var region: Region { member.region }
  private var isPinSafe: Bool { plan.policy.pinsBreakSharing }

  private func step() throws {
    Tally.add(.operations)
    let page = Int.random(in: 0..<plan.pageCount / plan.writers, using: &random) * plan.writers + index
    switch Int.random(in: 0..<100, using: &random) {
    case ..<6: try discard(page)
    case ..<9: try protect(page)
    case ..<17: try look()
    case ..<23: try pinForReading(page)
    case ..<29 where isPinSafe && !plan.tracks: try pinForWriting(page)
    default: try write(page)
    }
  }

  /// The number of an operation that begins; ``end(_:)`` ends it.
  private func begin(_ page: Int, _ slots: Range<Int>, isZero: Bool = false) -> UInt64 {
    let stamp = Self.stamps.add(1, ordering: .sequentiallyConsistent).newValue
    member.logs[index].begin(.init(stamp: stamp, slots: slots, value: isZero ? 0 : stamp))
    member.changes.started.increment(page)
    return stamp
  }

  private func end(_ page: Int) {
    member.changes.finished.increment(page)
    member.logs[index].end()
  }

  private func logged(_ page: Int, _ slots: Range<Int>, isZero: Bool = false, _ body: (UInt64) throws -> Void) throws {
    let stamp = begin(page, slots, isZero: isZero)
    defer { end(page) }
    try body(stamp)
  }

  private func write(_ page: Int) throws {
    let slot = Int.random(in: 0..<3, using: &random)
    let offset = page * 4096 + FamilyPlan.slots[slot]
    try logged(page, page * 3 + slot..<page * 3 + slot + 1) { stamp in
      if random.chance(50) { return try region.store(stamp, toByteOffset: offset) }
      try unsafe region.withUnsafeMutableBytes { unsafe $0.storeBytes(of: stamp, toByteOffset: offset, as: UInt64.self) }
    }
  }

  private func discard(_ page: Int) throws {
    try logged(page, page * 3..<page * 3 + 3, isZero: true) { _ in try region.discard(page..<page + 1) }
  }

  private func protect(_ page: Int) throws {
    try region.protect(page..<page + 1)
    let code = errorCode { try region.store(UInt64(1), toByteOffset: page * 4096) }
    if code == .unmapped { return }
    if code != .accessDenied {
      findings.note("a store to page \(page) that was denied: \(code?.description ?? "went through")")
    }
    try region.protect(page..<page + 1, to: .readWrite)
  }

  private func look() throws {
    if held.count > 2 { held.removeFirst() }
    held.append(HeldReference(try region.lookUp(Int.random(in: 0..<plan.pageCount, using: &random))))
  }

  private func value(_ pin: borrowing Pin, _ slot: Int) -> UInt64 {
    unsafe pin.withUnsafeBytes { unsafe $0.load(fromByteOffset: FamilyPlan.slots[slot], as: UInt64.self) }
  }

  private func pinForReading(_ page: Int) throws {
    // To a tracker a page that leaves a shared frame for the pin's sake counts as written.
    member.changes.started.increment(page)
    defer { member.changes.finished.increment(page) }
    let pin = try region.pin(page..<page + 1)
    let stamp = begin(page, page * 3 + 1..<page * 3 + 2)
    defer { end(page) }
    try region.store(stamp, toByteOffset: page * 4096 + FamilyPlan.slots[1])
    guard isPinSafe else { return }
    let seen = value(pin, 1)
    if seen != stamp { findings.note("W4: the owner wrote \(stamp) to page \(page), and reads \(seen) through its pin") }
  }

  private func pinForWriting(_ page: Int) throws {
    let pin = try region.pin(page..<page + 1, .write)
    let first = begin(page, page * 3 + 2..<page * 3 + 3)
    try store(first, through: pin)
    end(page)
    let seen: UInt64 = try region.load(fromByteOffset: page * 4096 + FamilyPlan.slots[2])
    if seen != first { findings.note("W4: \(first) went through a pin to page \(page), whose owner reads \(seen)") }
    let second = begin(page, page * 3..<page * 3 + 1)
    defer { end(page) }
    try region.store(second, toByteOffset: page * 4096)
    let read = value(pin, 0)
    if read != second { findings.note("W4: the owner wrote \(second) to page \(page), and its pin reads \(read)") }
  }

  private func store(_ stamp: UInt64, through pin: borrowing Pin) throws {
    try unsafe pin.withUnsafeMutableBytes {
      unsafe $0.storeBytes(of: stamp, toByteOffset: FamilyPlan.slots[2], as: UInt64.self)
    }
  }
}

/// Runs a plan: rounds of writing to every region beside a thread that clones, unmaps, collects and forks, and a comparison after each
/// round, when the writers rest.
final class FamilyModel {
  private let plan: FamilyPlan
  private let findings = Findings()
  private var random: SeededRandom
  private var members: [FamilyMember] = []
  private(set) var clones = 0
  private(set) var copies: UInt64 = 0

  init(_ plan: FamilyPlan) {
    self.plan = plan
    random = SeededRandom(seed: plan.seed)
  }

  func run() throws {
    let space = try AddressSpace.forTests()
    do { try live(space) } catch { findings.note("\(error)") }
    members = []
    copies = space.counters[.copies]
    let usage = try space.framePool().usage
    if findings.isEmpty, usage != FramePool.Usage(extents: 0, countedFrames: 0, mappers: 0, residentBytes: 0) {
      findings.note("left over: \(usage)")
    }
    try space.close()
    for finding in findings.all { Issue.record("\(finding) (\(plan.policy), \(plan.mechanism), seed \(plan.seed))") }
  }

  private func live(_ space: AddressSpace) throws {
    let root = try space.map(.pool, pages: plan.pageCount)
    members = [
      FamilyMember(root, content: [UInt64](repeating: 0, count: plan.slotCount), writers: plan.writers)
    ]
    for round in 0..<plan.rounds where findings.isEmpty { try work(round) }
    for member in members.shuffled(using: &random) { try member.region.unmap() }
  }

  private func work(_ round: Int) throws {
    let first = members[0]
    let view = plan.tracks ? try FamilyView(first, plan, findings) : nil
    var writers: [FamilyWriter] = []
    for member in members {
      for index in 0..<plan.writers {
        writers.append(FamilyWriter(plan, member, index: index, seed: random.next(), findings))
      }
    }
    let threads = writers.map { writer in TestThread { try writer.run() } }
    do {
      while threads.contains(where: { !$0.hasEnded }) {
        switch Int.random(in: 0..<100, using: &random) {
        case ..<20: try clone(joins: members.count < plan.members)
        case ..<23 where members.count > 2: try unmap()
        case ..<26 where plan.forks: if Fork.run() != 0 { findings.note("fork failed") }
        case ..<60 where plan.tracks: try view?.collect()
        default: sched_yield()
        }
      }
    } catch {
      for thread in threads { try? thread.join() }
      throw error
    }
    for thread in threads { try thread.join() }
    if plan.tracks {
      try view?.end("after round \(round)")
    }
    for (index, member) in members.enumerated() { try member.compare("after round \(round), region \(index)", findings) }
  }

  private func clone(joins: Bool) throws {
    guard let parent = members.randomElement(using: &random) else { return }
    let finished = parent.logs.map(\.finished)
    let clone = try parent.region.clone(reuse: plan.policy, mechanism: plan.mechanism)
    clones += 1
    let content = try FamilyMember.read(clone)
    parent.checkCut(content, finished: finished, findings)
    if joins {
      members.append(FamilyMember(clone, content: content, writers: plan.writers))
      return
    }
    if random.chance(50) {
      // A clone of the clone, whose own clone goes first or last.
      let second = try clone.clone(reuse: plan.policy, mechanism: plan.mechanism)
      try clone.store(UInt64(1), toByteOffset: 0)
      if random.chance(50) { try clone.unmap() }
      if try FamilyMember.read(second) != content { findings.note("a clone of a clone differs from it") }
      try second.unmap()
      guard !clone.gate.isClosed else { return }
      try clone.unmap()
    } else {
      if try FamilyMember.read(clone) != content { findings.note("a clone changed that nobody wrote") }
      try clone.unmap()
    }
  }

  /// Of a region whose writers go on: they are told.
  private func unmap() throws {
    let index = Int.random(in: 1..<members.count, using: &random)
    try members.remove(at: index).region.unmap(whilePinned: .wait)
  }
}
