internal import Foundation
internal import Glibc
internal import Logging
internal import PinKit
internal import Synchronization

/// Pages whose first word says which page it is, and when it was written; never zero.
enum BesidePages {
  static func word(_ page: Int, _ round: Int) -> UInt64 { UInt64(page + 1) << 32 | UInt64(round) }

  static func write(_ region: Region, _ page: Int, _ round: Int) throws {
    try region.store(word(page, round), toByteOffset: page * region.pageSize)
  }

  /// How many of the pages that `snapshot` can be asked for are not as `rounds` says; a page without a round holds zeros.
  static func wrong(_ snapshot: Snapshot, _ rounds: [Int?], in pages: some Sequence<Int>) throws -> Int {
    var wrong = 0
    for page in pages {
      let bytes = try snapshot.read(page)
      let found = unsafe bytes.withUnsafeBytes { unsafe $0.load(as: UInt64.self) }
      if found != rounds[page].map({ word(page, $0) }) ?? 0 { wrong += 1 }
    }
    return wrong
  }
}

/// A logger's memory: what was serious.
final class BesideLog: Sendable {
  private let serious = Mutex<[String]>([])
  var lines: [String] { serious.withLock { $0 } }

  struct Handler: LogHandler {
    let log: BesideLog
    var metadata: Logger.Metadata = [:]
    var logLevel = Logger.Level.error
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { metadata[key] }
      set { metadata[key] = newValue }
    }
    func log(event: LogEvent) { log.serious.withLock { $0.append("\(event.message)") } }
  }

  /// An address space that logs into it.
  func space(patience: Double = 10, policy: AddressSpace.FailurePolicy = .failRegion) throws -> AddressSpace {
    var configuration = AddressSpace.Configuration()
    configuration.logger = Logger(label: "pinctl") { _ in Handler(log: self) }
    configuration.patience = patience
    configuration.failurePolicy = policy
    return try AddressSpace(configuration: configuration)
  }
}

/// Threads that run until they are told to stop.
final class BesideThread: Sendable {
  private let isOver = Atomic(false)
  private let ended = DispatchSemaphore(value: 0)

  /// `body` is called again and again.
  init(_ body: @escaping @Sendable () -> Void) {
    Thread.detachNewThread {
      while !self.isOver.load(ordering: .acquiring) { body() }
      self.ended.signal()
    }
  }

  func stop() {
    isOver.store(true, ordering: .releasing)
    ended.wait()
  }
}

/// A file of this process without a name, which PinKit knows nothing of.
struct BesideFile {
  let descriptor: CInt
  private static let content = [UInt8](repeating: 0xA5, count: 65_536)

  init() throws {
    var name = Array("\(NSTemporaryDirectory())/pinctl-beside-XXXXXX".utf8CString)
    descriptor = unsafe mkstemp(&name)
    guard descriptor >= 0 else { throw LedgerFailure("mkstemp", errno) }
    _ = unsafe unlink(name)
    guard unsafe pwrite(descriptor, Self.content, Self.content.count, 0) == Self.content.count else {
      throw LedgerFailure("pwrite", errno)
    }
  }

  /// Whether it is what it was when it was made.
  var isUntouched: Bool {
    var bytes = [UInt8](repeating: 0, count: Self.content.count)
    let got = unsafe pread(descriptor, &bytes, bytes.count, 0)
    return got == bytes.count && bytes == Self.content && Int(lseek(descriptor, 0, SEEK_END)) == Self.content.count
  }
}
