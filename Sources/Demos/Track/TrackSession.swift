internal import Dispatch
internal import PinKit
internal import Terminal

/// One mechanism's turn: rounds of indexing with a collector beside them that checks every interval.
final class TrackSession {
  /// What was dirty in an interval, for the picture.
  struct Frame: Sendable {
    var dirty: DirtySet
    /// When it ended, in nanoseconds of uptime.
    var time: UInt64
    var beginsRound = false
  }

  let mechanism: WriteTracking.Mechanism
  private let plan: TrackPlan
  private let place: TrackRegion
  private let tracker: WriteTracker
  /// Has its own view of the same writes, and asks rarely.
  private let second: WriteTracker
  private let shadow: TrackShadow
  private let oracle: TrackOracle?
  private var checker: TrackChecker

  private(set) var frames: [Frame] = []
  private(set) var rounds = 0
  /// In nanoseconds, per round: from start to end, without the time that the writers were shut out.
  private(set) var indexingTimes: [Double] = []
  /// In nanoseconds: how long the racing collections took.
  private(set) var collectTimes: [Double] = []
  private var audits = TrackIndex.Audit()
  private var owed: DirtySet
  private var secondView = (checked: 0, wrong: 0)
  private var finallyDiffering: DirtySet?
  private static let secondStride = 16

  /// Maps a region and starts to track it.
  ///
  /// - Throws: ``PinError`` where the machine cannot do it.
  init(_ plan: TrackPlan, _ wanted: WriteTracking.Mechanism) throws {
    self.plan = plan
    place = try TrackRegion(plan)
    do {
      tracker = try place.region.trackWrites(wanted)
      second = try place.region.trackWrites()
    } catch {
      try? place.close()
      throw error
    }
    mechanism = tracker.mechanism
    shadow = TrackShadow(of: place.region)
    oracle = TrackOracle(place.region, tracker.mechanism)
    let layout = plan.layout
    checker = TrackChecker(asksKernel: oracle != nil, name: { layout.name(of: $0) })
    owed = DirtySet(pageCount: layout.pageCount)
  }

  var statistics: AddressSpace.Statistics { place.space.statistics }

  /// Runs rounds until `seconds` have passed, two at least.
  func run(seconds: Double) throws {
    let deadline = DispatchTime.now() + seconds
    // A busy machine may leave the collector no time beside the writers: then there is nothing to judge yet.
    let patience = deadline + 4 * seconds
    repeat {
      try runRound()
    } while rounds < 2 || DispatchTime.now() < deadline
      || (!checker.hasSeenEnough && DispatchTime.now() < patience)
    try writeAndCheckAlone()
    try compareViews()
    finallyDiffering = try shadow.differing()
  }

  /// One interval without the writers: however busy the machine, there is something to compare.
  private func writeAndCheckAlone() throws {
    let half = place.region.pageCount / 2
    let log = place.logs[0]
    log.begin(.first)
    for page in stride(from: 0, to: half, by: 7) { try rewrite(page, log) }
    let racing = try tracker.collect()
    log.begin(.afterRacing)
    for page in stride(from: half, to: place.region.pageCount, by: 5) { try rewrite(page, log) }
    try check(racing, copies: false, asksKernel: true)
  }

  /// Writes a byte that a page holds already.
  private func rewrite(_ page: Int, _ log: WriteLog) throws {
    log.note(page)
    let offset = page * place.region.pageSize
    try place.region.store(place.region.load(fromByteOffset: offset, as: UInt8.self), toByteOffset: offset)
  }

  private func runRound() throws {
    let round = place.round()
    var pauses = TrackPauses(round, place.gate)
    let first = frames.count
    pauses.begin()
    // Whatever happens here, the threads end before the region goes.
    defer { while !round.wait(milliseconds: 1000) {} }
    while try !runInterval(round, &pauses) {}
    if let failure = round.failure { throw failure }
    indexingTimes.append(pauses.workingTime)
    frames[first].beginsRound = true
    rounds += 1
    note(try place.audit(round))
  }

  private func note(_ audit: TrackIndex.Audit) {
    audits.words = audit.words
    audits.occurrences += audit.occurrences
    audits.wrong += audit.wrong
    audits.first = audits.first ?? audit.first.map { "\($0), in round \(rounds)" }
  }

  /// True if the threads had ended before it began to check.
  private func runInterval(_ round: TrackRound, _ pauses: inout TrackPauses) throws -> Bool {
    let discardsBefore = round.discardCount
    _ = round.wait(milliseconds: 2)
    let asked = DispatchTime.now().uptimeNanoseconds
    let racing = try tracker.collect()
    place.gate.beginSecondPhase()
    collectTimes.append(Double(DispatchTime.now().uptimeNanoseconds - asked))
    let copies = shadow.copyBesideWriters(racing)
    let isOver = round.wait(milliseconds: 2)
    try pauses.pause {
      // Discarded pages have left the page table: the kernel cannot tell then.
      let isUndisturbed = discardsBefore == round.discardCount && discardsBefore == plan.writers
      let isAsked = isUndisturbed && frames.count % (oracle?.stride ?? 1) == 0
      try check(racing, copies: copies, asksKernel: isAsked)
    }
    return isOver
  }

  /// With the writers shut out: the second collection, and all comparisons.
  private func check(_ racing: DirtySet, copies: Bool, asksKernel: Bool) throws {
    let number = frames.count
    let kernel = asksKernel ? try oracle?.written() : nil
    let quiet = try tracker.collect()
    let logs = place.takeLogs()
    let interval = TrackInterval(
      number: number, racing: racing, quiet: quiet, written: logs.all, writtenLater: logs.afterRacing,
      differing: try shadow.differing(), copiesRacing: copies, kernel: kernel)
    checker.judge(interval)
    // From the sets alone: a page that is missed stays wrong to the end.
    try shadow.copy(copies ? quiet : interval.reported)
    owed.formUnion(interval.reported)
    if number % Self.secondStride == Self.secondStride - 1 { try compareViews() }
    frames.append(Frame(dirty: interval.reported, time: DispatchTime.now().uptimeNanoseconds))
  }

  private func compareViews() throws {
    let got = try second.collect()
    secondView.checked += 1
    secondView.wrong += got == owed ? 0 : 1
    owed = DirtySet(pageCount: owed.pageCount)
  }

  func close() throws {
    try tracker.stop()
    try second.stop()
    try place.close()
  }

  // MARK: The verdict

  func claims() -> [Claim] {
    var claims = checker.claims(mechanism.rawValue, oracle: oracle?.description)
    let pages = plan.layout.pageCount
    claims.append(
      Claim(
        contract: "W5", claim: "\(mechanism.rawValue): a copy kept from the dirty sets alone equals the memory at the end",
        holds: finallyDiffering?.isEmpty ?? false,
        evidence: "\(pages.grouped) pages compared byte for byte; \((finallyDiffering?.count ?? pages).grouped) differ"))
    claims.append(
      Claim(
        contract: "W5",
        claim: "\(mechanism.rawValue): a second tracker that asks rarely gets the union of what the first got",
        holds: secondView.wrong == 0 && secondView.checked > 0,
        evidence: "\(secondView.checked) of its sets compared; \(secondView.wrong) differ"))
    let expected = plan.roundSize * rounds
    claims.append(
      Claim(
        contract: "W5", claim: "\(mechanism.rawValue): the index in tracked memory is right",
        holds: rounds > 0 && audits.wrong == 0 && audits.occurrences == expected,
        evidence:
          "\(audits.occurrences.grouped) occurrences of \(audits.words.grouped) words in \(rounds) rounds, against a count made in ordinary memory: \(expected.grouped); \(audits.wrong.grouped) words wrong"
          + (audits.first.map { "; the first: \($0)" } ?? "")))
    return claims
  }
}
