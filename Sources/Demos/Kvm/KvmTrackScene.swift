internal import Dispatch
internal import Guest
internal import PinKit
internal import Terminal

/// What a guest dirties, by each mechanism: a band that wanders, a comb that opens and closes, and a page now and then.
struct KvmTrackScene: DemoScene {
  let title = "which pages the guest writes"
  let rounds: Int
  private let pageCount = 1028

  /// What came of one mechanism's turn.
  struct Outcome {
    var mechanism: WriteTracking.Mechanism
    /// What was collected, and what the guest had been told to write.
    var sets: [(collected: DirtySet, written: DirtySet)] = []
    /// Pages that hold something else than what was last written to them.
    var wrong = 0
    /// Of pages written again right after a collection, and written again without one (the median of several passes); `nil` where the kernel
    /// does not count.
    var renewed: (collected: Int, kept: Int, pages: Int)?
    var refusals = 0
    /// In nanoseconds.
    var collectTime = 0.0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "\(rounds) times the guest writes a few hundred of \(pageCount.grouped) pages, and the tracker is asked. Under .inPlace and .mprotect the "
        + "kernel may not take the fault for the guest: KVM_RUN fails with EFAULT, and the machine takes it first.")
    var found = DemoFindings()
    for mechanism in [.handlerThread, .asynchronous] + [WriteTracking.Mechanism.inPlace, .mprotect] {
      found.attempt("guest: \(mechanism.rawValue)", needing: [.mechanism(mechanism, .anonymous)], on: stage) { found in
        var outcome = Outcome(mechanism: mechanism)
        try KvmMemory.with(.anonymous(hugePages: .never), pages: pageCount) { try play($0, &outcome) }
        if mechanism == .handlerThread {
          stage.draw(KvmHeatMap(stage: stage, sets: outcome.sets.map(\.collected)).lines)
        }
        let claims = Self.judge(outcome)
        stage.show(claims)
        found.claims += claims
        found.measurements += Self.measure(outcome)
      }
    }
    return found
  }

  private func play(_ region: Region, _ outcome: inout Outcome) throws {
    var machine = try GuestMachine(in: region)
    let tracker = try region.trackWrites(outcome.mechanism)
    var held = [UInt64](repeating: 0, count: pageCount)
    _ = try tracker.collect()
    var spent = UInt64(0)
    for round in 0..<rounds {
      var written = DirtySet(pageCount: pageCount)
      for (turn, (pages, step)) in plan(round).enumerated() {
        let value = UInt64(round * 8 + turn + 1)
        try machine.run(GuestStores(value, to: pages, every: step, pageSize: region.pageSize))
        let runs = stride(from: pages.lowerBound, to: pages.upperBound, by: step).map { $0..<$0 + 1 }
        for run in runs { held[run.lowerBound] = value }
        written = written.union(DirtySet(pageCount: pageCount, runs: runs))
      }
      let before = DispatchTime.now().uptimeNanoseconds
      outcome.sets.append((try tracker.collect(), written))
      spent += DispatchTime.now().uptimeNanoseconds - before
    }
    outcome.collectTime = Double(spent) / Double(rounds)
    for page in 4..<pageCount {
      let word = try region.load(fromByteOffset: page * region.pageSize, as: UInt64.self)
      if word != held[page] { outcome.wrong += 1 }
    }
    outcome.refusals = machine.refusals
    try renew(&machine, tracker, region, &outcome)
    try tracker.stop()
  }

  /// Whether a collection takes the guest's translations, and nothing else does.
  private func renew(
    _ machine: inout GuestMachine, _ tracker: WriteTracker, _ region: Region, _ outcome: inout Outcome
  ) throws {
    let stores = GuestStores(1, to: 4..<pageCount, pageSize: region.pageSize)
    try machine.run(stores)
    _ = try tracker.collect()
    guard let first = machine.translationsMade else { return }
    try machine.run(stores)
    let second = machine.translationsMade ?? 0
    // The kernel may move pages at any time, and takes their translations for that: half of the passes shall be as cheap as this says.
    var costs: [Int] = []
    for _ in 0..<15 {
      guard let before = machine.translationsMade else { return }
      try machine.run(stores)
      guard let after = machine.translationsMade else { return }
      costs.append(after - before)
    }
    let kept = costs.sorted()[costs.count / 2]
    outcome.renewed = (second - first, kept, pageCount - 4)
  }

  /// What the guest writes in a round: pages, and every how many of them.
  private func plan(_ round: Int) -> [(Range<Int>, Int)] {
    let band = 4 + round * 13 % 900
    let comb = 1 + abs(round % 32 - 16)
    var all = [(band..<band + 96, 1), (700..<956, comb)]
    if round % 3 == 0 { all.append((pageCount - 1 - round % 60..<pageCount - round % 60, 1)) }
    return all
  }
}
