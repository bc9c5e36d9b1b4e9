import Foundation
import Synchronization

/// Two threads that do the same at the same time.
enum FloorPair {
  private final class Meeting: Sendable {
    let arrived = Atomic<Int>(0)
    let result = Mutex<Result<Double, any Error>>(.success(0))
    let isOver = DispatchSemaphore(value: 0)

    /// Nobody sleeps: who is woken comes too late.
    func meet() {
      arrived.add(1, ordering: .sequentiallyConsistent)
      while arrived.load(ordering: .sequentiallyConsistent) < 2 {}
    }
  }

  /// Runs `body` on this thread and on another, and returns the larger of their figures.
  static func run(_ body: @escaping @Sendable () throws -> Double) throws -> Double {
    let meeting = Meeting()
    let thread = Thread {
      meeting.meet()
      let result = Result { try body() }
      meeting.result.withLock { $0 = result }
      meeting.isOver.signal()
    }
    thread.start()
    meeting.meet()
    let own = Result { try body() }
    meeting.isOver.wait()
    return max(try own.get(), try meeting.result.withLock { $0 }.get())
  }
}
