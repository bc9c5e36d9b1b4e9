import CTestSupport
import Logging
import Synchronization
import Testing

@testable import PinKit

/// `#expect` for the bodies of exit tests: an issue of theirs reaches the parent without its expression and with the place of the
/// whole test, so these say what they found.
func check(_ condition: @autoclosure () throws -> Bool, _ comment: @autoclosure () -> String) rethrows {
  if try !condition() { Issue.record("\(comment())") }
}

func check<Value: Equatable>(
  _ found: @autoclosure () throws -> Value, is expected: Value, _ comment: @autoclosure () -> String = ""
) rethrows {
  let found = try found()
  if found != expected { Issue.record("\(found) instead of \(expected) \(comment())") }
}

/// The status of a child of `fork()` that does nothing but `body`; 1000 and a signal's number if that ended it.
func childStatus(_ body: () -> CInt) -> CInt {
  let process = ct_fork()
  if process == 0 {
    ct_unblock_signals()
    ct_alarm(100)
    ct_exit(body())
  }
  return ct_wait(process)
}

/// A thread of the host program: signals reach it as they reach any other.
struct HostThread {
  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }
  private let handle: UInt64

  init(_ run: @escaping @Sendable () -> Void) {
    let context = unsafe Unmanaged.passRetained(Body(run)).toOpaque()
    handle = unsafe ct_thread_start({ unsafe Unmanaged<Body>.fromOpaque($0!).takeRetainedValue().run() }, context)
  }

  func join() { ct_thread_join(handle) }
}

/// Threads that are started from anywhere.
final class HostThreads: Sendable {
  private let threads = Mutex<[HostThread]>([])
  var isEmpty: Bool { threads.withLock { $0.isEmpty } }
  func start(_ run: @escaping @Sendable () -> Void) { threads.withLock { $0.append(HostThread(run)) } }
  func join() { for thread in threads.withLock({ $0 }) { thread.join() } }
}

/// Keeps what is logged at `info` and above.
final class LogCapture: Sendable {
  private let lines = Mutex<[(level: Logger.Level, text: String)]>([])

  struct Handler: LogHandler {
    let capture: LogCapture
    var metadata: Logger.Metadata = [:]
    var logLevel = Logger.Level.info
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }
    func log(event: LogEvent) {
      capture.lines.withLock { $0.append((event.level, "\(event.message)")) }
    }
  }

  var logger: Logger { Logger(label: "test") { _ in Handler(capture: self) } }
  func texts(_ level: Logger.Level) -> [String] { lines.withLock { $0.filter { $0.level == level }.map(\.text) } }
}

/// A region that is tracked, its pages touched once and collected: what most tests of this folder start from.
struct Tracked {
  let space: AddressSpace
  let region: Region
  let tracker: WriteTracker

  init(
    _ mechanism: WriteTracking.Mechanism, pages: Int = 64, backing: Backing = .anonymous(hugePages: .never),
    options: WriteTracking.Options = .init(), onFirstWrite: (@Sendable (FirstWrite) -> Void)? = nil,
    configure: (inout AddressSpace.Configuration) -> Void = { _ in }
  ) throws {
    var configuration = AddressSpace.Configuration()
    configuration.logger = LogCapture().logger
    configure(&configuration)
    space = try AddressSpace(configuration: configuration)
    region = try space.map(backing, pages: pages)
    try region.fill(with: 1)
    tracker = try region.trackWrites(mechanism, options: options, onFirstWrite: onFirstWrite)
    _ = try tracker.collect()
  }

  func address(of page: Int) -> UInt64 { UInt64(region.addresses.start) + UInt64(page * region.pageSize) }

  /// Writes to a few pages and expects a collection to hold exactly those.
  func expectExact(_ pages: [Int] = [0, 3, 4, 17]) throws {
    for page in pages { ct_store(address(of: page), UInt8(truncatingIfNeeded: page &+ 7)) }
    let dirty = try tracker.collect()
    check(Array(dirty.pages), is: pages)
    check(dirty.isExact, "dirty.isExact")
    for page in pages {
      check(ct_load(address(of: page)), is: UInt8(truncatingIfNeeded: page &+ 7))
    }
    try check(tracker.collect().isEmpty, "tracker.collect().isEmpty")
  }

  func close() throws {
    try tracker.stop()
    try region.unmap()
    try space.close()
  }
}

extension Mechanisms {
  /// Those whose faults arrive as signals.
  static let inSignalHandlers: [WriteTracking.Mechanism] = [.inPlace, .mprotect]
  /// Those that rest on a userfaultfd.
  static let onUserfaultfd: [WriteTracking.Mechanism] = [.handlerThread, .inPlace, .asynchronous]
}

/// A tracked region beside a copy that is refreshed from what collections report: a page that changed without being reported
/// differs in the end.
final class ShadowedRegion: Sendable {
  let tracked: Tracked
  private let shadow: Mutex<[UInt8]>

  init(
    _ mechanism: WriteTracking.Mechanism, pages: Int, configure: (inout AddressSpace.Configuration) -> Void = { _ in }
  ) throws {
    tracked = try Tracked(mechanism, pages: pages, configure: configure)
    shadow = Mutex([UInt8](repeating: 0, count: pages * tracked.region.pageSize))
    for page in 0..<pages { refresh(page) }
  }

  private var pageSize: Int { tracked.region.pageSize }

  private func refresh(_ page: Int) {
    let start = tracked.address(of: page)
    shadow.withLock { shadow in
      for offset in stride(from: 0, to: pageSize, by: 4) {
        // The bytes that are written lie at the ends.
        guard offset < 16 || offset >= pageSize - 16 else { continue }
        for byte in offset..<offset + 4 { shadow[page * pageSize + byte] = ct_load(start + UInt64(byte)) }
      }
    }
  }

  /// Writes so often, to one page after the other, a byte that belongs to the writer.
  func write(_ times: Int, as writer: Int) {
    let pages = tracked.region.pageCount
    for turn in 0..<times {
      ct_store(tracked.address(of: (turn * 7 + writer) % pages) + UInt64(writer), UInt8(truncatingIfNeeded: turn + 1))
    }
  }

  func collect() {
    do {
      for page in try tracked.tracker.collect().pages { refresh(page) }
    } catch {
      Issue.record(error)
    }
  }

  func expectNothingLost() {
    var lost: [Int] = []
    shadow.withLock { shadow in
      for page in 0..<tracked.region.pageCount {
        for byte in Array(0..<16) + Array(pageSize - 16..<pageSize)
        where shadow[page * pageSize + byte] != ct_load(tracked.address(of: page) + UInt64(byte)) {
          lost.append(page)
          break
        }
      }
    }
    check(lost.isEmpty, "changed unreported: \(lost)")
  }

  /// The sum of the counters in the last words of the pages, which a profiler's handler increments.
  func profiledWrites() -> UInt64 {
    var sum: UInt64 = 0
    for page in 0..<tracked.region.pageCount {
      for byte in 0..<4 {
        sum += UInt64(ct_load(tracked.address(of: page) + UInt64(pageSize - 4 + byte))) << UInt64(8 * byte)
      }
    }
    return sum
  }
}
