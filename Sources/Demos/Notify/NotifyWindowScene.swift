internal import PinKit
internal import Synchronization
internal import Terminal

/// A window onto a few pages goes down for a collection, and comes up again (N2, N7, N10).
struct NotifyWindowScene: DemoScene {
  let title = "a window goes down for a collection"
  let needs: [DemoNeed] = [.mechanism(.handlerThread, .pool)]
  static let window = 4..<8
  static let marked = 40..<42
  static let (recorder, middle, view, program) = ("subscriber", "middle", "window", "program")

  struct Record {
    var events: [NotifyEvent] = []
    /// Whether the window was up before the collection, in the subscriber's start and its end, after the collection, and after the next access.
    var isUp: [Bool] = []
    var addresses: Set<UInt> = []
    var isKept = false
    var written = Set<Int>()
    var collected: [Range<Int>] = []
    /// What marking a page said after the callback.
    var lateMark: PinError.Code?
    /// What each operation of the program is called, and the calls that it made.
    var operations: [(name: String, events: [NotifyEvent])] = []
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A DirectMapping of pages 4 to 7 is read and written without a system call while it is up. The program writes many other pages, then "
        + "collects: all that were written lose the right to be written, so one pair of calls tells everybody, and the window goes down. What was "
        + "written through it must be in that collection, as must what a subscriber marks in its callback. The next access puts it up."
    )
    let record = try Self.perform()
    stage.show()
    let actors = [Self.program, Self.view, Self.recorder, Self.middle]
    for line in NotifyTimeline(actors: actors, events: record.events).lines(stage) { stage.show("  " + line) }
    stage.show()
    return DemoFindings(showing: Self.judge(record), on: stage)
  }

  static func judge(_ record: Record) -> [Claim] {
    func has(_ page: Int) -> Bool { record.collected.contains { $0.contains(page) } }
    let missing = record.written.union(window).filter { !has($0) }
    let collection = record.events
    let pairs = (collection.count(recorder, .start), collection.count(recorder, .end))
    let told = collection.first { $0.actor == recorder && $0.kind == .start }?.pages ?? 0..<0
    let middles = record.operations.map { $0.events.count(middle, .invalidate) }
    return [
      Claim(
        contract: "N10", claim: "one pair of calls for a collection over many pages",
        holds: record.written.count > 10 && pairs == (1, 1) && collection.arePaired(for: recorder)
          && record.written.allSatisfy(told.contains),
        evidence:
          "\(pairs.0) start and \(pairs.1) end, of pages \(told), for \(record.written.count) pages that were written."),
      Claim(
        contract: "N7", claim: "who implements invalidateRange alone is called once for every change",
        holds: !middles.isEmpty && middles.allSatisfy { $0 == 1 },
        evidence: record.operations.map { "\($0.name): \($0.events.count(middle, .invalidate))" }.joined(separator: ", ")),
      Claim(
        contract: "N2", claim: "what was written through the window is in the collection that took it down",
        holds: !record.written.isEmpty && missing.isEmpty,
        evidence: missing.isEmpty
          ? "Nothing is missing of pages \(window), and of \(record.written.count) others." : "Missing: \(missing.sorted())."
      ),
      Claim(
        contract: "N2", claim: "a mark made in the callback is in the collection, and later it is an error",
        holds: marked.allSatisfy(has) && record.lateMark == .tooLate,
        evidence: "Of pages \(marked), \(marked.count(where: has)) are in it; marking them later "
          + (record.lateMark.map { "failed: \($0)." } ?? "was allowed.")),
      Claim(
        contract: "N9", claim: "the window is up at the start, down at the end, and up again with its next access",
        holds: record.isUp == [true, true, false, false, true] && record.addresses.count == 1 && record.isKept,
        evidence: "Before, start, end, after, next access: "
          + record.isUp.map { $0 ? "up" : "down" }.joined(separator: ", ")
          + "; \(counted(record.addresses.count, "address")); its bytes were \(record.isKept ? "kept" : "lost")."),
    ]
  }

  private final class Middle: MMUNotifier {
    let log: NotifyLog
    init(_ log: NotifyLog) { self.log = log }
    func invalidateRange(_ range: InvalidationRange) { log.note(middle, .invalidate) }
  }

  static func perform() throws -> Record {
    let space = try DemoSpace.make()
    let region = try space.map(.pool, pages: 64)
    let log = NotifyLog()
    let up = Mutex<[Bool]>([])
    let late = Mutex<InvalidationRange?>(nil)
    let marks = Atomic<Bool>(false)
    var record = Record()
    let tracker = try region.trackWrites(.handlerThread)
    let mapping = try DirectMapping(region, pages: window)
    let subscriber = NotifyRecorder(recorder, log) { kind, range in
      late.withLock { $0 = range }
      guard marks.load(ordering: .relaxed) else { return }
      if kind == .start { try? range.markDirty(marked) }
      if kind == .start || kind == .end { up.withLock { $0.append(mapping.isEstablished) } }
    }
    let subscriptions = [try region.subscribe(subscriber), try region.subscribe(Middle(log))]

    func use(_ value: UInt64) throws {
      try unsafe mapping.withBytes { bytes in
        record.addresses.insert(UInt(bitPattern: bytes.baseAddress!))
        unsafe bytes.storeBytes(of: value, toByteOffset: 2 * region.pageSize, as: UInt64.self)
      }
      log.note(view, .note, "up, wrote \(value)")
    }
    try use(7)
    for page in stride(from: 1, to: 64, by: 3) where !window.contains(page) {
      try region.store(UInt64(page), toByteOffset: page * region.pageSize)
      record.written.insert(page)
    }
    log.note(program, .note, "wrote \(record.written.count) pages")
    record.isUp.append(mapping.isEstablished)
    marks.store(true, ordering: .relaxed)
    log.note(program, .began, "collect")
    record.collected = try tracker.collect().runs
    log.note(program, .returned, "returned")
    marks.store(false, ordering: .relaxed)
    record.isUp += up.withLock { $0 } + [mapping.isEstablished]
    log.note(view, .note, mapping.isEstablished ? "is up" : "is down")
    let kept: UInt64 = try region.load(fromByteOffset: (window.lowerBound + 2) * region.pageSize)
    try use(8)
    record.isKept = kept == 7
    record.isUp.append(mapping.isEstablished)
    record.events = log.take()
    record.operations.append(("collect", record.events))
    do { try late.withLock { $0 }?.markDirty(marked) } catch { record.lateMark = error.code }

    func perform(_ name: String, _ body: () throws -> Void) throws {
      _ = log.take()
      try body()
      record.operations.append((name, log.take()))
    }
    try perform("protect") { try region.protect(10..<20) }
    try perform("unprotect") { try region.protect(10..<20, to: .readWrite) }
    try perform("discard") { try region.discard(30..<34) }
    try perform("snapshot") { try region.snapshot().close() }
    mapping.close()
    for subscription in subscriptions { subscription.remove() }
    try tracker.stop()
    try space.close()
    return record
  }
}
