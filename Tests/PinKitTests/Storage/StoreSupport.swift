import CTestSupport
import Glibc
import Synchronization
import SystemPackage

@testable import PinKit

/// A store in memory that can be slow, refuse and fail as it is told, and that writes down what it was asked. What was written and not
/// flushed is lost when it loses power.
final class UnrulyStore: PageStore {
  enum Call: Hashable, CustomStringConvertible {
    case read(Range<Int>), write(Range<Int>), makeWritable(Range<Int>), flush
    var description: String {
      switch self {
      case .read(let pages): "read(\(pages))"
      case .write(let pages): "write(\(pages))"
      case .makeWritable(let pages): "makeWritable(\(pages))"
      case .flush: "flush"
      }
    }
  }

  struct Rules: Sendable {
    /// Called before the bytes are taken, or given; it may block and throw.
    var reading: @Sendable (Range<Int>) throws(PinError) -> Void = { _ in }
    var writing: @Sendable (Range<Int>) throws(PinError) -> Void = { _ in }
    var granting: @Sendable (Range<Int>) throws(PinError) -> Void = { _ in }
    var flushing: @Sendable () throws(PinError) -> Void = {}
    /// Reads that end in the middle, with bytes in the buffer that are nobody's: when they may wait, and when they may not.
    var isShort: @Sendable (Range<Int>) -> Bool = { _ in false }
    var isShortNow: @Sendable (Range<Int>) -> Bool = { _ in false }
    /// Answers at once whatever it can.
    var isQuick = true
  }

  let geometry: StoreGeometry
  private let rules: Mutex<Rules>
  private let bytes: Mutex<[UInt8]>
  private let durable: Mutex<[UInt8]>
  private let log = Mutex<[Call]>([])

  init(pages: Int, rules: Rules = Rules(), bytes: Int? = nil, _ byte: (Int) -> UInt8 = { UInt8(truncatingIfNeeded: $0 + 1) })
  {
    geometry = StoreGeometry(byteCount: bytes ?? pages * 4096)
    var content = [UInt8](repeating: 0, count: pages * 4096)
    for page in 0..<pages {
      for offset in page * 4096..<min((page + 1) * 4096, geometry.byteCount) { content[offset] = byte(page) }
    }
    self.bytes = Mutex(content)
    durable = Mutex(content)
    self.rules = Mutex(rules)
  }

  func set(_ change: (inout Rules) -> Void) { rules.withLock { change(&$0) } }
  var calls: [Call] { log.withLock { $0 } }
  func forgetCalls() { log.withLock { $0 = [] } }
  /// The pages that were written, in order.
  var written: [Int] {
    calls.flatMap { call -> [Int] in if case .write(let pages) = call { Array(pages) } else { [] } }
  }
  func byte(_ page: Int, at offset: Int = 0) -> UInt8 { bytes.withLock { $0[page * 4096 + offset] } }
  func durableByte(_ page: Int, at offset: Int = 0) -> UInt8 { durable.withLock { $0[page * 4096 + offset] } }
  /// What would be there after a loss of power.
  func durablePage(_ page: Int) -> [UInt8] { durable.withLock { Array($0[page * 4096..<(page + 1) * 4096]) } }
  func page(_ page: Int) -> [UInt8] { bytes.withLock { Array($0[page * 4096..<(page + 1) * 4096]) } }

  func readNow(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) -> Bool {
    guard rules.withLock({ $0.isQuick }) else { return false }
    if rules.withLock({ $0.isShortNow })(pages) {
      unsafe Self.spoil(memory)
      return false
    }
    return unsafe (try? read(pages, into: memory)) != nil
  }

  private static func spoil(_ memory: UnsafeMutableRawBufferPointer) {
    unsafe _ = memory.initializeMemory(as: UInt8.self, repeating: 0xee)
  }

  func read(_ pages: Range<Int>, into memory: UnsafeMutableRawBufferPointer) throws(PinError) {
    log.withLock { $0.append(.read(pages)) }
    try rules.withLock({ $0.reading })(pages)
    if rules.withLock({ $0.isShort })(pages) {
      unsafe Self.spoil(memory)
      throw .broken
    }
    bytes.withLock { bytes in
      unsafe bytes.withUnsafeBytes { source in
        unsafe memory.copyMemory(
          from: UnsafeRawBufferPointer(rebasing: source[pages.lowerBound * 4096..<pages.upperBound * 4096]))
      }
    }
  }

  func write(_ transfers: [PageTransfer]) -> [PinError?] {
    transfers.map { transfer in
      log.withLock { $0.append(.write(transfer.pages)) }
      do throws(PinError) { try rules.withLock({ $0.writing })(transfer.pages) } catch { return error }
      let source = unsafe UnsafeRawBufferPointer(
        start: UnsafeRawPointer(bitPattern: transfer.memory.start), count: transfer.memory.count)
      let copy = unsafe [UInt8](source)
      bytes.withLock { $0.replaceSubrange(transfer.pages.lowerBound * 4096..<transfer.pages.upperBound * 4096, with: copy) }
      return nil
    }
  }

  func pageMakeWritable(_ pages: Range<Int>) throws(PinError) {
    log.withLock { $0.append(.makeWritable(pages)) }
    try rules.withLock({ $0.granting })(pages)
  }

  func pageMakeWritableNow(_ pages: Range<Int>) -> Bool {
    guard rules.withLock({ $0.isQuick }) else { return false }
    return (try? pageMakeWritable(pages)) != nil
  }

  func flush() throws(PinError) {
    log.withLock { $0.append(.flush) }
    let now = bytes.withLock { $0 }
    try rules.withLock({ $0.flushing })()
    durable.withLock { $0 = now }
  }
}

extension PinError {
  static var broken: PinError {
    Tally.add(.faults)
    return PinError(.inputOutput, operation: "a test's store", errno: .ioError, advice: "It was told to fail.")
  }
  static let full = PinError(.outOfSpace, operation: "a test's store", errno: .noSpace, advice: "It was told to be full.")
}

extension Region {
  func byte(_ page: Int, at offset: Int = 0) throws(PinError) -> UInt8 {
    try load(fromByteOffset: page * pageSize + offset, as: UInt8.self)
  }
  func setByte(_ value: UInt8, _ page: Int, at offset: Int = 0) throws(PinError) {
    try store(value, toByteOffset: page * pageSize + offset)
  }
  /// Reads through a pointer, as a program does.
  func peek(_ page: Int, at offset: Int = 0) -> UInt8 { ct_load(UInt64(addresses.start) + UInt64(page * pageSize + offset)) }
  func poke(_ value: UInt8, _ page: Int, at offset: Int = 0) {
    ct_store(UInt64(addresses.start) + UInt64(page * pageSize + offset), value)
  }
}

/// Where calls of a store wait until it opens, for whichever pages.
final class StoreGate: Sendable {
  private let pipe: (readEnd: FileDescriptor, writeEnd: FileDescriptor)
  private let threads = Mutex((now: 0, most: 0))
  /// How many wait, and how many have waited at a time.
  var waiting: Int { threads.withLock { $0.now } }
  var mostWaiting: Int { threads.withLock { $0.most } }

  init() throws { pipe = try FileDescriptor.pipe() }
  deinit { try? pipe.readEnd.close() }

  func wait() {
    threads.withLock { $0 = ($0.now + 1, max($0.most, $0.now + 1)) }
    var entry = pollfd(fd: pipe.readEnd.rawValue, events: 0, revents: 0)
    while unsafe poll(&entry, 1, -1) != 1 {}
    threads.withLock { $0.now -= 1 }
  }
  func open() throws { try pipe.writeEnd.close() }
}
