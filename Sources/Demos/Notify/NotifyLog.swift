internal import CFloor
internal import PinKit
internal import Synchronization

/// Something that happened, and when.
struct NotifyEvent: Sendable, Hashable {
  enum Kind: String, Sendable {
    case start, refused = "would block", invalidate, end, release
    case cleared, set = "set: new frame"
    case began, returned, oldValue, newValue, note
  }
  /// In nanoseconds.
  var time: UInt64 = 0
  /// Whose column it is drawn in.
  var actor: String
  var kind: Kind
  /// What is drawn; the kind's name unless given.
  var text = ""
  var change: InvalidationRange.Event?
  var pages = 0..<0
}

/// What happened, in order: the time is taken under the lock.
final class NotifyLog: Sendable {
  private let list = Mutex<[NotifyEvent]>([])

  init() {
    // A subscriber may be called in a signal handler: it had better not have to allocate.
    list.withLock { $0.reserveCapacity(4096) }
  }

  func note(_ event: NotifyEvent) {
    list.withLock { list in
      var event = event
      event.time = cfloor_now()
      list.append(event)
    }
  }

  func note(_ actor: String, _ kind: NotifyEvent.Kind, _ text: String = "") {
    note(NotifyEvent(actor: actor, kind: kind, text: text))
  }

  /// What has come since the last time.
  func take() -> [NotifyEvent] {
    list.withLock { list in
      defer { list.removeAll(keepingCapacity: true) }
      return Array(list)
    }
  }
}

/// A subscriber that writes down what it is told.
final class NotifyRecorder: MMUNotifier {
  typealias OnCall = @Sendable (NotifyEvent.Kind, InvalidationRange) -> Void
  let name: String
  private let log: NotifyLog
  private let refusals = Atomic<Int>(0)
  private let onCall: OnCall

  /// `onCall` runs in each callback, before it is written down.
  init(_ name: String, _ log: NotifyLog, onCall: @escaping OnCall = { _, _ in }) {
    self.name = name
    self.log = log
    self.onCall = onCall
  }

  /// Answers the next so many starts that it would block.
  func refuse(_ times: Int) { refusals.store(times, ordering: .sequentiallyConsistent) }

  private func note(_ kind: NotifyEvent.Kind, _ range: InvalidationRange) {
    onCall(kind, range)
    log.note(NotifyEvent(actor: name, kind: kind, change: range.event, pages: range.pages))
  }

  func invalidateRangeStart(_ range: InvalidationRange) -> InvalidationResponse {
    if refusals.load(ordering: .sequentiallyConsistent) > 0 {
      refusals.subtract(1, ordering: .sequentiallyConsistent)
      note(.refused, range)
      return .wouldBlock
    }
    note(.start, range)
    return .done
  }
  func invalidateRange(_ range: InvalidationRange) { note(.invalidate, range) }
  func invalidateRangeEnd(_ range: InvalidationRange) { note(.end, range) }
  func release() { log.note(name, .release) }
}

extension [NotifyEvent] {
  /// How often an actor got a call of a kind.
  func count(_ actor: String, _ kind: NotifyEvent.Kind) -> Int { count { $0.actor == actor && $0.kind == kind } }

  /// Whether the calls of an actor are pairs of a start and its end, one after the other.
  func arePaired(for actor: String) -> Bool {
    var isOpen = false
    for event in self where event.actor == actor {
      switch event.kind {
      case .start:
        if isOpen { return false }
        isOpen = true
      case .end:
        if !isOpen { return false }
        isOpen = false
      case .refused where isOpen: return false
      default: break
      }
    }
    return !isOpen
  }
}
