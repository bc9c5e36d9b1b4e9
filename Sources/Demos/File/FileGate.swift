internal import Dispatch
internal import Foundation
internal import Synchronization

/// Where callers of a store wait until they are let go.
final class FileGate: Sendable {
  private let condition = NSCondition()
  private let state = Mutex((isOpen: false, waiting: 0))

  func wait() {
    condition.lock()
    state.withLock { $0.waiting += 1 }
    condition.broadcast()
    while !state.withLock({ $0.isOpen }) { condition.wait() }
    state.withLock { $0.waiting -= 1 }
    condition.unlock()
  }

  /// How many wait, once there are so many, or after ten seconds.
  func waiters(atLeast count: Int) -> Int {
    condition.lock()
    defer { condition.unlock() }
    let deadline = Date(timeIntervalSinceNow: 10)
    while state.withLock({ $0.waiting }) < count, condition.wait(until: deadline) {}
    return state.withLock { $0.waiting }
  }

  func open() {
    condition.lock()
    state.withLock { $0.isOpen = true }
    condition.broadcast()
    condition.unlock()
  }
}

/// Threads with a number each.
final class FileThreads {
  private let group = DispatchGroup()

  init(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
    for index in 0..<count {
      group.enter()
      let group = group
      Thread.detachNewThread {
        body(index)
        group.leave()
      }
    }
  }

  func join() { group.wait() }
}
