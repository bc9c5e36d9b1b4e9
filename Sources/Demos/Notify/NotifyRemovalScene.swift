internal import CFloor
internal import Foundation
internal import PinKit
internal import Synchronization
internal import Terminal

/// Subscribers go: from inside their own callback, beside one that is running, and with the memory (N8, N12).
struct NotifyRemovalScene: DemoScene {
  let title = "subscribers go"

  struct Record {
    /// The calls of a subscriber that removed itself, and another, at its first start; and how many changes came after that.
    var own: [NotifyEvent] = []
    var other: [NotifyEvent] = []
    var changes = 0
    /// When a callback ended, and when a removal by another thread, which began while it ran, returned; in nanoseconds.
    var callbackEnded: UInt64 = 0
    var removed: UInt64 = 0
    var callsAfter = -1
    /// How often each of those that stayed was released, and which memory there was then.
    var releases: [String: Int] = [:]
    var residentAtRelease = 0
    var removedReleases = 0
  }

  func run(on stage: DemoStage) throws -> DemoFindings {
    stage.say(
      "A subscriber removes itself and another while it is being told of a change. Then a third is removed by one thread while its callback "
        + "runs on another. At last the address space closes, and whoever still subscribes is released.")
    let record = try Self.perform()
    stage.show()
    return DemoFindings(showing: Self.judge(record), on: stage)
  }

  static func judge(_ record: Record) -> [Claim] {
    let wait = Int64(bitPattern: record.removed &- record.callbackEnded)
    return [
      Claim(
        contract: "N8", claim: "a subscriber can remove itself and others from inside a callback",
        holds: record.own.map(\.kind) == [.start] && record.other.isEmpty && record.changes > 1,
        evidence: "Of \(counted(record.changes, "change")) it got \(counted(record.own.count, "call")): "
          + record.own.map(\.kind.rawValue).joined(separator: ", ") + "; the other got \(record.other.count)."),
      Claim(
        contract: "N8", claim: "when removal returns, no callback is running, and none comes",
        holds: record.callbackEnded > 0 && wait >= 0 && record.callsAfter == 0,
        evidence:
          "It returned \((Double(wait) / 1000).rounded(to: 0)) µs after the callback had ended; \(record.callsAfter) calls after that."
      ),
      Claim(
        contract: "N12", claim: "release comes once, before any frame is freed, and not to those who are gone",
        holds: record.releases.count == 2 && record.releases.values.allSatisfy { $0 == 1 } && record.residentAtRelease > 0
          && record.removedReleases == 0,
        evidence: record.releases.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }.joined(separator: ", ")
          + "; then \(record.residentAtRelease.grouped) bytes of frames were there; removed ones: \(record.removedReleases)."
      ),
    ]
  }

  static func perform() throws -> Record {
    var record = Record()
    let space = try DemoSpace.make()
    let region = try space.map(.pool, pages: 16)
    for page in 0..<16 { try region.store(UInt64(page), toByteOffset: page * region.pageSize) }
    func change() throws {
      try region.protect(0..<4)
      try region.protect(0..<4, to: .readWrite)
      record.changes += 2
    }

    let log = NotifyLog()
    let gone = Mutex<[Subscription]>([])
    let own = NotifyRecorder("own", log) { _, _ in for one in gone.withLock({ $0 }) { one.remove() } }
    let other = NotifyRecorder("other", log)
    let made = [try region.subscribe(own, to: 0..<16), try region.subscribe(other, to: 1..<16)]
    gone.withLock { $0 = made }
    try change()
    try change()
    var calls = log.take()

    let times = try removeBeside(region, log, change)
    calls += times.calls
    record.callbackEnded = times.callbackEnded
    record.removed = times.removed
    record.callsAfter = times.calls.count { $0.actor == "slow" } - 1
    record.own = calls.filter { $0.actor == "own" }
    record.other = calls.filter { $0.actor == "other" }

    let resident = Atomic<Int>(0)
    let pool = try space.framePool()
    let ofRegion = NotifyRecorder("of the region", log)
    let ofSpace = NotifyRelease("of the space", log) { resident.store(pool.usage.residentBytes, ordering: .relaxed) }
    let stay = [try region.subscribe(ofRegion), try space.subscribe(ofSpace)]
    try change()
    _ = log.take()
    try space.close()
    let released = log.take().filter { $0.kind == .release }
    for event in released where ["of the region", "of the space"].contains(event.actor) {
      record.releases[event.actor, default: 0] += 1
    }
    record.removedReleases = released.count - record.releases.values.reduce(0, +)
    record.residentAtRelease = resident.load(ordering: .relaxed)
    for subscription in stay { subscription.remove() }
    return record
  }

  /// Another thread removes a subscriber whose callback is running on this one.
  private static func removeBeside(
    _ region: Region, _ log: NotifyLog, _ change: () throws -> Void
  ) throws -> (calls: [NotifyEvent], callbackEnded: UInt64, removed: UInt64) {
    let isRunning = Atomic<Bool>(false)
    let isRemoving = Atomic<Bool>(false)
    let ended = Atomic<UInt64>(0)
    let removed = Atomic<UInt64>(0)
    let slow = NotifyRecorder("slow", log) { kind, _ in
      guard kind == .start else { return }
      isRunning.store(true, ordering: .sequentiallyConsistent)
      while !isRemoving.load(ordering: .sequentiallyConsistent) { usleep(50) }
      // Long enough for a removal that does not wait to be seen.
      usleep(20_000)
      ended.store(cfloor_now(), ordering: .sequentiallyConsistent)
    }
    let subscription = try region.subscribe(slow)
    let isOver = DispatchSemaphore(value: 0)
    let thread = Thread {
      while !isRunning.load(ordering: .sequentiallyConsistent) { usleep(50) }
      isRemoving.store(true, ordering: .sequentiallyConsistent)
      subscription.remove()
      removed.store(cfloor_now(), ordering: .sequentiallyConsistent)
      isOver.signal()
    }
    thread.start()
    try change()
    isOver.wait()
    try change()
    return (log.take(), ended.load(ordering: .sequentiallyConsistent), removed.load(ordering: .sequentiallyConsistent))
  }
}

/// A subscriber that wants to know of the end alone.
private final class NotifyRelease: MMUNotifier {
  private let name: String
  private let log: NotifyLog
  private let onRelease: @Sendable () -> Void

  init(_ name: String, _ log: NotifyLog, _ onRelease: @escaping @Sendable () -> Void) {
    self.name = name
    self.log = log
    self.onRelease = onRelease
  }

  func release() {
    onRelease()
    log.note(name, .release)
  }
}
