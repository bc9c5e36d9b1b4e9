import CTestSupport
import Logging
import Synchronization
import Testing

@testable import PinKit

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
  func expectExact(_ pages: [Int] = [0, 3, 4, 17], sourceLocation: SourceLocation = #_sourceLocation) throws {
    for page in pages { ct_store(address(of: page), UInt8(truncatingIfNeeded: page &+ 7)) }
    let dirty = try tracker.collect()
    #expect(Array(dirty.pages) == pages, sourceLocation: sourceLocation)
    #expect(dirty.isExact, sourceLocation: sourceLocation)
    for page in pages {
      #expect(ct_load(address(of: page)) == UInt8(truncatingIfNeeded: page &+ 7), sourceLocation: sourceLocation)
    }
    #expect(try tracker.collect().isEmpty, sourceLocation: sourceLocation)
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

