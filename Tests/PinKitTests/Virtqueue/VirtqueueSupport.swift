import Glibc
@testable import PinKit
import Synchronization
import Virtqueue

/// A region between two pages-long guards of known content, all of one mapping.
@safe final class GuardedMemory {
  let space: AddressSpace
  let region: Region
  private let start: UnsafeMutableRawPointer
  private let guardBytes = 16 * 4096
  private let bytes: Int

  init(pages: Int) throws {
    bytes = 2 * guardBytes + pages * 4096
    let made = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let made = unsafe made, unsafe made != MAP_FAILED else { throw PinError(.outOfMemory, operation: "mmap") }
    unsafe start = made
    unsafe memset(start, 0xa5, bytes)
    space = try AddressSpace.forTests()
    region = try space.adopt(
      AddressRange(start: UInt(bitPattern: unsafe start + guardBytes), count: pages * 4096))
    unsafe memset(start + guardBytes, 0, pages * 4096)
  }

  deinit { unsafe munmap(start, bytes) }

  /// Whether every byte beside the region is what it was.
  var isIntact: Bool {
    let ends = [(0, guardBytes), (bytes - guardBytes, guardBytes)]
    return ends.allSatisfy { offset, count in
      unsafe UnsafeRawBufferPointer(start: start + offset, count: count).allSatisfy { $0 == 0xa5 }
    }
  }

  func close() throws { try space.close() }
}

/// What a side did to ring memory or buffers.
struct RingEvent: Hashable {
  enum Kind { case load, store, acquire, release, read, write }
  var kind: Kind
  var offset: Int
  var count: Int
  var end: Int { offset + count }
}

/// Notes every access, and fails those that were asked to fail.
///
/// Unchecked: one thread uses it.
final class AccessLog: @unchecked Sendable {
  var events: [RingEvent] = []
  /// Called before an access; what it throws is thrown there.
  var hook: ((RingEvent) throws(PinError) -> Void)?

  func note(_ kind: RingEvent.Kind, _ offset: Int, _ count: Int) throws(PinError) {
    let event = RingEvent(kind: kind, offset: offset, count: count)
    events.append(event)
    try hook?(event)
  }

  func of(_ kinds: RingEvent.Kind...) -> [RingEvent] { events.filter { kinds.contains($0.kind) } }
}

struct RecordingRings: RingMemory, RingWindow {
  let rings: CheckedRingMemory
  let log: AccessLog

  init(_ region: Region, _ log: AccessLog) {
    rings = CheckedRingMemory(region)
    self.log = log
  }

  func withWindow<Result>(_ body: (RecordingRings) throws(PinError) -> Result) throws(PinError) -> Result { try body(self) }
  func load<Value: BitwiseCopyable>(at offset: Int, as type: Value.Type) throws(PinError) -> Value {
    try log.note(.load, offset, MemoryLayout<Value>.size)
    return try rings.load(at: offset, as: type)
  }
  func store<Value: BitwiseCopyable>(_ value: Value, at offset: Int) throws(PinError) {
    try log.note(.store, offset, MemoryLayout<Value>.size)
    try rings.store(value, at: offset)
  }
  func loadAcquiring(at offset: Int) throws(PinError) -> UInt16 {
    try log.note(.acquire, offset, 2)
    return try rings.loadAcquiring(at: offset)
  }
  func storeReleasing(_ value: UInt16, at offset: Int) throws(PinError) {
    try log.note(.release, offset, 2)
    try rings.storeReleasing(value, at: offset)
  }
}

struct RecordingBuffers: BufferMemory {
  let region: Region
  let log: AccessLog
  var byteCount: Int { region.byteCount }

  func copy(fromByteOffset offset: Int, into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    try log.note(.read, offset, target.count)
    unsafe try region.copy(fromByteOffset: offset, into: target)
  }
  func copy(_ source: UnsafeRawBufferPointer, toByteOffset offset: Int) throws(PinError) {
    try log.note(.write, offset, source.count)
    unsafe try region.copy(source, toByteOffset: offset)
  }
}

/// A region by a pointer, without rights, locks or anything else that would order what threads do: what a direct mapping is.
///
/// Whoever makes it keeps the region mapped.
struct PointerRings: RingMemory, BufferMemory {
  private let addresses: AddressRange
  var byteCount: Int { addresses.count }

  init(region: Region) { addresses = region.addresses }

  private var start: UnsafeMutablePointer<UInt8> {
    unsafe UnsafeMutablePointer(bitPattern: addresses.start)!
  }

  func withWindow<Result>(_ body: (BytesWindow) throws(PinError) -> Result) throws(PinError) -> Result {
    unsafe try body(BytesWindow(UnsafeMutableRawBufferPointer(start: start, count: byteCount)))
  }

  // Byte by byte, in this module: the thread sanitizer does not see what the standard library copies.
  func copy(fromByteOffset offset: Int, into target: UnsafeMutableRawBufferPointer) throws(PinError) {
    for index in 0..<target.count { unsafe target[index] = (start + offset + index).pointee }
  }
  func copy(_ source: UnsafeRawBufferPointer, toByteOffset offset: Int) throws(PinError) {
    for index in 0..<source.count { unsafe (start + offset + index).pointee = source[index] }
  }
}

/// A driver that writes what it likes.
struct HostileDriver {
  let region: Region
  let layout: VirtqueueLayout

  func describe(_ index: Int, _ descriptor: VirtqueueDescriptor) throws {
    try region.store(descriptor, toByteOffset: layout.descriptors.lowerBound + 16 * index)
  }
  func offer(_ heads: [UInt16], index: UInt16? = nil) throws {
    for (place, head) in heads.enumerated() {
      try region.store(head, toByteOffset: layout.availableEntry(UInt16(place)))
    }
    try region.storeReleasing(index ?? UInt16(heads.count), toByteOffset: layout.availableIndex)
  }
  /// What the device has put into the used ring.
  func used() throws -> [VirtqueueUsedElement] {
    let count = try region.loadAcquiring(fromByteOffset: layout.usedIndex)
    return try (0..<count).map { try region.load(fromByteOffset: layout.usedEntry($0)) }
  }
}

extension VirtqueueRequest {
  /// Reads all that can be read and fills all that can be written with `byte`.
  mutating func drain(_ byte: UInt8 = 0x77) throws(PinError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: readableByteCount)
    var span = bytes.mutableSpan
    let count = try read(into: &span)
    let answer = [UInt8](repeating: byte, count: writableByteCount)
    _ = try write(answer.span)
    return Array(bytes.prefix(count))
  }
}

/// What `body` throws of a queue's errors.
func queueError(_ body: () throws(VirtqueueError) -> Void) -> VirtqueueError? {
  do throws(VirtqueueError) { try body() } catch { return error }
  return nil
}

func fnv(_ bytes: some Sequence<UInt8>) -> UInt64 {
  bytes.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
}
