internal import CFloor
internal import Foundation
internal import PinKit
internal import Synchronization

/// A device that reads a page through a secondary MMU, as fast as it can.
final class NotifyReader: Sendable {
  static let name = "reader"

  struct Seen: Sendable {
    var reads = 0
    /// Reads that ran while the page had no frame, or before all were told that it has its new one.
    var stale = 0
    /// Values that came after a newer one.
    var backwards = 0
    var changes = 0
    /// When the last read of the value before the current one was over, and when the first of the current one was.
    var lastOld: UInt64 = 0
    var firstNew: UInt64 = 0
    var value: UInt64 = 0
    var failure: String?
  }

  private let mirror: SecondaryMMU
  private let page: Int
  private let seen = Mutex(Seen())
  private let isOver = Atomic<Bool>(false)
  private let ended = DispatchSemaphore(value: 0)
  /// Set while nobody may read.
  let isChanging = Atomic<Bool>(false)

  init(_ mirror: SecondaryMMU, page: Int) {
    self.mirror = mirror
    self.page = page
  }

  func start() {
    let thread = Thread { [self] in
      run()
      ended.signal()
    }
    thread.name = Self.name
    thread.start()
  }

  func stop() {
    isOver.store(true, ordering: .relaxed)
    ended.wait()
  }

  var now: Seen { seen.withLock { $0 } }

  /// Waits until the reader has read `value`; false if that takes more than ten seconds.
  func wait(for value: UInt64) -> Bool { wait { now.value == value } }

  /// Waits until the mirror has translated the page.
  func waitForTranslation() -> Bool { wait { mirror.isTranslated(page) } }

  private func wait(until isDone: () -> Bool) -> Bool {
    let begun = cfloor_now()
    while cfloor_now() - begun < 10_000_000_000 {
      if isDone() { return true }
      if now.failure != nil { return false }
      usleep(20)
    }
    return false
  }

  private func run() {
    var last = cfloor_now()
    while !isOver.load(ordering: .relaxed) {
      do {
        var wasChanging = false
        let value = try unsafe mirror.withBytes(of: page, for: .reading) { bytes in
          wasChanging = isChanging.load(ordering: .sequentiallyConsistent)
          let value = unsafe bytes.load(as: UInt64.self)
          if isChanging.load(ordering: .sequentiallyConsistent) { wasChanging = true }
          return value
        }
        let time = cfloor_now()
        seen.withLock { seen in
          seen.reads += 1
          if wasChanging { seen.stale += 1 }
          if value != seen.value {
            if value < seen.value { seen.backwards += 1 }
            seen.changes += 1
            seen.lastOld = last
            seen.firstNew = time
            seen.value = value
          }
        }
        last = time
      } catch {
        seen.withLock { $0.failure = "\(error)" }
        return
      }
    }
  }
}
