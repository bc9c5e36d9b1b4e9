import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

private let hasRing = (try? SubmissionRing(entries: 1)) != nil

/// What happens to pages while they are cleaned.
@Suite("Cleaning pages of a store", .serialized) struct FileCleaningTests {
  /// A device: an io_uring that has the bytes of a pin registered as a fixed buffer, and reads files into it.
  private struct Device: ~Copyable {
    private var ring: SubmissionRing
    private let memory: AddressRange
    private let directory: ImageDirectory

    private init(_ ring: consuming SubmissionRing, _ memory: AddressRange, _ directory: ImageDirectory) {
      self.ring = ring
      self.memory = memory
      self.directory = directory
    }

    static func on(_ pin: borrowing Pin) throws -> Device {
      let memory = AddressRange(start: pin.start, count: pin.byteCount)
      let directory = try ImageDirectory()
      var ring = try SubmissionRing(entries: 4)
      let result = ring.registerBuffers([memory])
      #expect(result == 0)
      return Device(ring, memory, directory)
    }

    /// Fills the buffer with `byte`, by READ_FIXED.
    mutating func fill(_ byte: UInt8) throws {
      try RawFile.write([UInt8](repeating: byte, count: memory.count), directory("bytes"))
      let file = try FileDescriptor.open(FilePath(directory("bytes")), .readOnly)
      defer { try? file.close() }
      try #require(ring.queueReadFixed(from: file.rawValue, at: 0, into: memory, buffer: 0, userData: 1) == .queued)
      try ring.submit(waitingFor: 1)
      try #require(ring.nextCompletion()?.outcome == .done(bytes: memory.count))
    }

    mutating func close() throws { try ring.unregisterBuffers() }
  }

  @Test(
    "P3: the four steps of the accident: a page that a device writes through a pin is never clean, and its last bytes reach the store",
    .enabled(if: hasRing, "needs io_uring"), arguments: [true, false])
  func accident(isQuick: Bool) throws {
    let space = try AddressSpace.forTests()
    let store = UnrulyStore(pages: 8)
    store.set { $0.isQuick = isQuick }
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    let tracker = try region.trackWrites(.handlerThread)
    let pin = try region.pin(2..<4, .write)
    var device = try Device.on(pin)
    // 1: written through the pin.
    try device.fill(0xa1)
    // 2: written back.
    try region.flush()
    #expect((2..<4).map { store.durableByte($0, at: 4095) } == [0xa1, 0xa1])
    #expect(try (2..<4).allSatisfy { try region.filePageState($0).isDirty }, "a pinned page is never reported clean")
    #expect(try region.frameState(2).isDirty)
    #expect(try tracker.collect().runs == [2..<4])
    // 3: written through the pin again, with no fault that says so.
    try device.fill(0xa2)
    #expect(try region.reclaim(0..<8) == 0)
    #expect(try tracker.collect().runs == [2..<4], "and is in every set (P6)")
    try device.fill(0xa3)
    // 4: let go of.
    try device.close()
    pin.unpin()
    #expect(try (2..<4).allSatisfy { try region.filePageState($0).isDirty }, "dirty after it is unpinned")
    #expect(try region.reclaim(0..<8) == 0)
    #expect(try tracker.collect().runs == [2..<4])
    try region.flush()
    #expect((2..<4).map { store.durableByte($0, at: 4095) } == [0xa3, 0xa3])
    #expect(try region.reclaim(2..<4) == 2, "clean at last")
    #expect(try region.byte(2, at: 77) == 0xa3)
    try tracker.stop()
    try space.close()
  }

  @Test(
    "P3: what is written back of a pinned page is of one moment, whatever the device and the processor write meanwhile",
    .enabled(if: hasRing, "needs io_uring"))
  func stableCopy() throws {
    let space = try AddressSpace.forTests()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    let pin = try region.pin(2..<4, .write)
    try unsafe pin.withUnsafeMutableBytes { _ = unsafe $0.initializeMemory(as: UInt8.self, repeating: 0xb1) }
    let start = UInt64(pin.start)
    store.set {
      // The store has the memory, and has not looked at it yet.
      $0.writing = { _ throws(PinError) in for offset: UInt64 in 0..<8192 { ct_store(start + offset, 0xb2) } }
    }
    try region.flush()
    store.set { $0.writing = { _ throws(PinError) in } }
    #expect(Set(store.page(2) + store.page(3)) == [0xb1])
    // The processor waits until the copy is made, and no longer.
    let poked = Shared()
    store.set {
      $0.writing = { _ throws(PinError) in if !spin(until: { poked.value == 1 }) { throw .broken } }
    }
    let hasSeen = Shared()
    let writer = TestThread {
      while !region.table[2].contains(.open) || (try? region.filePageState(2).isDirty) != true { sched_yield() }
      hasSeen.value = 1
      while region.table[2].contains(.open) { sched_yield() }
      region.poke(0xb3, 2)
      poked.value = 1
    }
    region.poke(0xb2, 2)
    #expect(spin { hasSeen.value == 1 })
    try region.flush()
    try writer.join()
    store.set { $0.writing = { _ throws(PinError) in } }
    pin.unpin()
    try space.close()
    #expect(store.durableByte(2) == 0xb3)
  }

  @Test("N3: A page that was cleaned while its store was asked is asked about again before it becomes writable")
  func askedAgain() throws {
    let space = try AddressSpace.forTests()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    region.poke(50, 3)
    store.set { $0.writing = { _ throws(PinError) in throw .broken } }
    #expect(errorCode { try region.flush() } == .inputOutput)
    #expect(try region.filePageState(3).isDirty)
    // It needs the store's word again, and is dirty still.
    let isAsked = Shared()
    let mayAnswer = Shared()
    store.set {
      $0.writing = { _ throws(PinError) in }
      $0.isQuick = false
      $0.granting = { _ throws(PinError) in
        isAsked.value = 1
        while mayAnswer.value == 0 { Kernel.pause(nanoseconds: 50_000) }
      }
    }
    store.forgetCalls()
    let writer = TestThread { region.poke(51, 3) }
    #expect(spin { isAsked.value == 1 })
    try region.flush()
    #expect(store.durableByte(3) == 50)
    mayAnswer.value = 1
    try writer.join()
    #expect(store.calls == [.makeWritable(3..<4), .write(3..<4), .flush, .makeWritable(3..<4)])
    try space.close()
    #expect(store.durableByte(3) == 51)
  }

  @Test("A page that goes to another frame between its collection and its turn is written from that frame")
  func movedMeanwhile() throws {
    // Hooks hear of other tests' pages, too, and of pages behind the first 4096 when those are written.
    let (pages, last) = (4200, 4150)
    let space = try AddressSpace.forTests()
    let store = UnrulyStore(pages: pages)
    let region = try space.map(.file(store), pages: pages)
    for page in 0..<pages { region.poke(200, page) }
    let clones = Clones()
    let isOnce = Shared()
    TestHooks.set(.writingBack) { first in
      guard first == 0, region.table[0].isDisjoint(with: .open), (try? region.filePageState(0).isUnderWriteback) == true,
        isOnce.add() == 1
      else { return }
      clones.note { try region.clone() }
      region.poke(201, last)
      // Protects it again.
      clones.note {
        try region.snapshot().close()
        return nil
      }
    }
    defer { TestHooks.set(.writingBack, nil) }
    try region.flush()
    #expect(clones.errors.all == [])
    #expect(isOnce.value >= 1 && region.table.extent(last) != 0)
    #expect(store.durableByte(last) >= 200 && store.durableByte(last, at: 9) == UInt8(truncatingIfNeeded: last + 1))
    try region.flush()
    #expect(store.durableByte(last) == 201)
    try clones.unmap()
    try space.close()
  }
}

/// Regions that were made in a hook.
private final class Clones: Sendable {
  let errors = Findings()
  private let made = Mutex<[Region]>([])
  func note(_ body: () throws -> Region?) {
    do { if let region = try body() { made.withLock { $0.append(region) } } } catch { errors.note("\(error)") }
  }
  func unmap() throws { for region in made.withLock({ $0 }) { try region.unmap() } }
}
