import Foundation
import Synchronization

/// Threads that do the same at the same time.
enum FloorTeam {
  /// Where they wait for each other, and what became of each.
  private final class Meeting: Sendable {
    private let size: Int
    private let arrived = Atomic<Int>(0)
    private let results = Mutex<[Result<(start: UInt64, end: UInt64), any Error>]>([])
    private let ended = DispatchSemaphore(value: 0)

    init(_ size: Int) { self.size = size }

    /// Nobody sleeps: who is woken comes too late.
    private func meet() {
      arrived.add(1, ordering: .sequentiallyConsistent)
      while arrived.load(ordering: .sequentiallyConsistent) < size {}
    }

    func take(_ thread: Int, _ prepare: (Int) throws -> Void, _ body: (Int) throws -> Void) {
      let prepared = Result { try prepare(thread) }
      meet()
      let result = Result {
        try prepared.get()
        let start = nanoseconds()
        try body(thread)
        return (start: start, end: nanoseconds())
      }
      results.withLock { $0.append(result) }
      ended.signal()
    }

    /// From the first start to the last end.
    func time() throws -> Double {
      for _ in 0..<size { ended.wait() }
      let spans = try results.withLock { $0 }.map { try $0.get() }
      return Double(spans.map(\.end).max()! - spans.map(\.start).min()!)
    }
  }

  /// Runs `body` on this thread and on others, with their numbers, each of which makes `calls`; ns a call, from the moment at which the
  /// first thread began until the slowest was done.
  ///
  /// The slowest counts, and not the mean: threads that come one after the other where they should come together cost more then, never
  /// less, and so does one that is starved. All this can only add, so the least of a few tries is the figure.
  ///
  /// - Parameter prepare: What each thread does before it waits for the others: what only its first call costs.
  static func time(
    _ threads: Int, calls: Int, prepare: @escaping @Sendable (Int) throws -> Void = { _ in },
    _ body: @escaping @Sendable (Int) throws -> Void
  ) throws -> Double {
    let meeting = Meeting(threads)
    for number in 1..<max(1, threads) { Thread { meeting.take(number, prepare, body) }.start() }
    meeting.take(0, prepare, body)
    return try meeting.time() / Double(calls)
  }
}

/// Threads that write memory of their own, page after page, as long as the object lives.
final class FloorBusy: Sendable {
  /// A loop that holds no reference to the object, as its end would never come.
  private final class Load: Sendable {
    let isOver = Atomic<Bool>(false)
    let running = Atomic<Int>(0)
    let ended = DispatchSemaphore(value: 0)

    func run() {
      let memory = FloorMemory(pages: 64)
      let order = PageOrder.sequential(64)
      running.add(1, ordering: .relaxed)
      while !isOver.load(ordering: .relaxed) { _ = memory.write(order) }
      ended.signal()
    }
  }
  private let load = Load()
  private let threads: Int

  init(_ threads: Int) {
    self.threads = threads
    for _ in 0..<threads {
      let load = load
      Thread { load.run() }.start()
    }
    while load.running.load(ordering: .relaxed) < threads { Thread.sleep(forTimeInterval: 0.001) }
  }

  deinit {
    load.isOver.store(true, ordering: .relaxed)
    for _ in 0..<threads { load.ended.wait() }
  }
}
