@_spi(Tracing) internal import PinKit
internal import Synchronization

/// A page that is shared, and gets a frame of its own when it is written, again and again, while somebody reads it through a mirror.
struct NotifyBreak {
  static let (first, second, writer, table) = ("first", "second", "writer", "page table")

  struct Round {
    var events: [NotifyEvent] = []
    /// What the old frame's metadata said in each of the first subscriber's callbacks.
    var counts: [(kind: NotifyEvent.Kind, counts: FrameCounts)] = []
    /// How often the second subscriber was asked to refuse.
    var refusals = 0
    var hasNewFrame = false
    /// The reader had a translation when the page was written.
    var wasTranslated = false
    /// The region that shared the page holds what was there before.
    var isKept = false
  }

  struct Record {
    var mechanism: WriteTracking.Mechanism
    var rounds: [Round] = []
    var reader = NotifyReader.Seen()
    /// The first round, with the reader's events.
    var drawn: [NotifyEvent] = []
  }

  /// What the first subscriber looks at when it is called.
  private final class Watch: Sendable {
    private let frame = Mutex<HeldReference?>(nil)
    private let seen = Mutex<[(NotifyEvent.Kind, FrameCounts)]>([])

    func look(_ kind: NotifyEvent.Kind) {
      guard let counts = frame.withLock({ $0?.reference.state.counts }) else { return }
      seen.withLock { $0.append((kind, counts)) }
    }

    func begin(_ reference: HeldReference) { frame.withLock { $0 = reference } }

    func end() -> [(NotifyEvent.Kind, FrameCounts)] {
      frame.withLock { $0 = nil }
      return seen.withLock { seen in
        defer { seen = [] }
        return seen
      }
    }
  }

  static func perform(_ mechanism: WriteTracking.Mechanism, breaks: Int, page: Int = 5) throws -> Record {
    let space = try DemoSpace.make()
    let template = try space.map(.pool, pages: 16)
    for page in 0..<16 { try template.store(UInt64(1), toByteOffset: page * template.pageSize) }
    let region = try template.clone(mechanism: mechanism)
    let (log, watch) = (NotifyLog(), Watch())
    // The lower its first page, the earlier a subscriber is told.
    let mirror = try SecondaryMMU(region, pages: 2..<16)
    let reader = NotifyReader(mirror, page: page)
    let first = NotifyRecorder(first, log) { kind, _ in
      watch.look(kind)
      if kind == .end { reader.isChanging.store(false, ordering: .sequentiallyConsistent) }
    }
    let second = NotifyRecorder(second, log)
    let subscriptions = [try region.subscribe(first, to: 0..<16), try region.subscribe(second, to: 1..<16)]
    FrameChangeTrace.observe { step, _ in
      if step == .cleared { reader.isChanging.store(true, ordering: .sequentiallyConsistent) }
      log.note(table, step == .cleared ? .cleared : .set)
    }
    defer { FrameChangeTrace.observe(nil) }

    var record = Record(mechanism: mechanism)
    reader.start()
    var sharer = template
    do {
      for number in 0..<breaks {
        let value = UInt64(number) + 2
        if number > 0 { sharer = try region.clone(mechanism: mechanism) }
        var round = Round()
        guard reader.wait(for: value - 1) else { break }
        // Sharing the page has taken the translation away.
        round.wasTranslated = reader.waitForTranslation()
        let frame = try region.frameState(page).frame
        round.refusals = number == 0 ? 2 : number % 3 == 1 ? 1 : 0
        second.refuse(round.refusals)
        watch.begin(HeldReference(try region.lookUp(page)))
        _ = log.take()
        log.note(writer, .began, "store \(value)")
        try region.store(value, toByteOffset: page * region.pageSize)
        log.note(writer, .returned, "returned")
        let isRead = reader.wait(for: value)
        round.events = log.take()
        round.counts = watch.end()
        round.hasNewFrame = try region.frameState(page).frame != frame
        round.isKept = try sharer.load(fromByteOffset: page * region.pageSize, as: UInt64.self) == value - 1
        if number == 0 { record.drawn = drawn(round.events, reader.now, value) }
        record.rounds.append(round)
        if number > 0 { try sharer.unmap() }
        if !isRead { break }
      }
    } catch {
      reader.stop()
      throw error
    }
    reader.stop()
    record.reader = reader.now
    mirror.close()
    for subscription in subscriptions { subscription.remove() }
    try space.close()
    return record
  }

  private static func drawn(_ events: [NotifyEvent], _ seen: NotifyReader.Seen, _ value: UInt64) -> [NotifyEvent] {
    let old = NotifyEvent(
      time: seen.lastOld, actor: NotifyReader.name, kind: .oldValue, text: "last read of \(value - 1)")
    let new = NotifyEvent(time: seen.firstNew, actor: NotifyReader.name, kind: .newValue, text: "first read of \(value)")
    return (events + [old, new]).sorted { $0.time < $1.time }
  }
}
