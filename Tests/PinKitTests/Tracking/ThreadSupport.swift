import CTestSupport
import Glibc
import Synchronization

@testable import PinKit

/// A number that several threads share.
final class Shared: Sendable {
  private let number: Atomic<Int>
  init(_ value: Int = 0) { number = Atomic(value) }
  var value: Int {
    get { number.load(ordering: .sequentiallyConsistent) }
    set { number.store(newValue, ordering: .sequentiallyConsistent) }
  }
  @discardableResult func add(_ amount: Int = 1) -> Int {
    number.add(amount, ordering: .sequentiallyConsistent).newValue
  }
  /// Waits until the number is at least `least`, and then for so many turns of a loop.
  func wait(for least: Int, thenSpin turns: Int) {
    while value < least { sched_yield() }
    for _ in 0..<turns { Kernel.relax() }
  }
}

/// What went wrong, noted by threads that cannot record issues themselves.
final class Findings: Sendable {
  private let list = Mutex<[String]>([])
  func note(_ text: String) { list.withLock { if $0.count < 20 { $0.append(text) } } }
  var all: [String] { list.withLock { $0 } }
  var isEmpty: Bool { all.isEmpty }
}

/// A POSIX thread; whoever made it joins it.
final class TestThread: Sendable {
  private final class Start: Sendable {
    let body: @Sendable () throws -> Void
    let thread = Shared()
    let failure = Mutex<(any Error)?>(nil)
    let hasEnded = Shared()
    let isJoined = Shared()
    init(_ body: @escaping @Sendable () throws -> Void) { self.body = body }
  }

  private let start: Start
  private let id: UInt

  init(_ body: @escaping @Sendable () throws -> Void) {
    let start = Start(body)
    self.start = start
    var made = pthread_t()
    let result = unsafe pthread_create(
      &made, nil,
      { raw in
        let start = unsafe Unmanaged<Start>.fromOpaque(raw!).takeRetainedValue()
        start.thread.value = Int(Kernel.threadID)
        do { try start.body() } catch { start.failure.withLock { $0 = error } }
        start.hasEnded.value = 1
        return nil
      }, Unmanaged.passRetained(start).toOpaque())
    precondition(result == 0, "pthread_create: \(result)")
    id = UInt(made)
  }

  var hasEnded: Bool { start.hasEnded.value == 1 }

  /// Waits for its end; throws what its body threw. May be called again.
  func join() throws {
    if start.isJoined.add() == 1 { pthread_join(pthread_t(id), nil) }
    if let failure = start.failure.withLock({ $0 }) { throw failure }
  }

  /// Whether the kernel has it asleep, as a thread is that waits for a lock or for a fault.
  var isAsleep: Bool {
    guard start.thread.value != 0,
      let status = try? ProcessMaps.readFile("/proc/self/task/\(start.thread.value)/stat"),
      let end = status.lastIndex(of: ")")
    else { return false }
    return status[status.index(end, offsetBy: 2)] == "S"
  }
}

/// Runs `body` on `count` threads at once and waits for all.
func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) throws {
  let ready = Shared()
  let threads = (0..<count).map { index in
    TestThread {
      ready.add()
      while ready.value < count { sched_yield() }
      try body(index)
    }
  }
  for thread in threads { try thread.join() }
}

/// In seconds, as long as a deadline of a process (`ct_deadline`).
private let longest = Double(30 * environmentNumber("PINKIT_DEADLINE_FACTOR", or: 10))

/// Yields until `condition` holds; false if it does not within `seconds`.
func spin(forAtMost seconds: Double? = nil, until condition: () -> Bool) -> Bool {
  let end = Kernel.now() + UInt64((seconds ?? longest) * 1e9)
  while !condition() {
    if Kernel.now() > end { return false }
    sched_yield()
  }
  return true
}

/// Gives everybody else the processor for a while: what has not happened then is taken not to happen.
func yieldForAWhile(milliseconds: UInt64 = 5) {
  let end = Kernel.now() + milliseconds * 1_000_000
  repeat { sched_yield() } while Kernel.now() < end
}

/// SplitMix64: small, and the same everywhere.
struct SeededRandom: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
  mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }
}

/// The real fork(2), which Swift's Glibc hides.
enum Fork {
  private typealias Function = @convention(c) () -> Int32

  /// Forks; `child` runs in the child, which then exits at once. Returns the child's exit status.
  ///
  /// `child` must neither allocate nor lock: other threads of the parent do not exist in it.
  static func run(_ child: (() -> Int32)? = nil) -> Int32 {
    guard let symbol = unsafe dlsym(nil, "fork") else { return -1 }
    let fork = unsafe unsafeBitCast(symbol, to: Function.self)
    let process = fork()
    if process == 0 { ct_exit(child?() ?? 0) }
    guard process > 0 else { return -1 }
    var status: Int32 = 0
    while unsafe waitpid(process, &status, 0) < 0, errno == EINTR {}
    return status & 0x7f == 0 ? (status >> 8) & 0xff : -(status & 0x7f)
  }

  /// Starts `/bin/true` by posix_spawn(3) and waits for it.
  static func spawn() -> Int32 {
    var process = pid_t()
    var arguments: [UnsafeMutablePointer<CChar>?] = unsafe [strdup("/bin/true"), nil]
    defer { unsafe free(arguments[0]) }
    guard unsafe posix_spawn(&process, "/bin/true", nil, nil, &arguments, nil) == 0 else { return -1 }
    var status: Int32 = 0
    while unsafe waitpid(process, &status, 0) < 0, errno == EINTR {}
    return status
  }
}

/// Holds whoever comes to a hook at one of a few pages, until all may go on. Whoever sets the hook removes it.
final class HeldThreads: Sendable {
  private let arrivals = Shared()
  private let mayGoOn = Shared()

  init(at point: TestHooks.Point, _ pages: some RangeExpression<Int> & Sendable) {
    TestHooks.set(point) { [arrivals, mayGoOn] page in
      guard pages.contains(page) else { return }
      arrivals.add()
      _ = spin { mayGoOn.value == 1 }
    }
  }

  /// Waits for the first; false if nobody comes.
  func first() -> Bool { spin { arrivals.value > 0 } }
  func letGo() { mayGoOn.value = 1 }
}
