import CTestSupport
import Synchronization
import Testing

@testable import PinKit

@Suite("Region") struct RegionTests {
  private func code(_ body: () throws -> Void) -> PinError.Code? {
    do { try body() } catch { return (error as? PinError)?.code }
    return nil
  }

  @Test("access beyond the bounds is an error and changes nothing") func bounds() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 2)
    let last = region.addresses.count - 8
    try region.store(UInt64(7), toByteOffset: last)
    #expect(try region.load(fromByteOffset: last, as: UInt64.self) == 7)
    for offset in [-1, last + 1, region.addresses.count, Int.max, Int.min] {
      #expect(code { try region.store(UInt64(9), toByteOffset: offset) } == .outOfBounds)
      #expect(code { _ = try region.load(fromByteOffset: offset, as: UInt64.self) } == .outOfBounds)
    }
    var bytes = [UInt8](repeating: 3, count: 4096)
    try unsafe bytes.withUnsafeMutableBytes { buffer in
      let into = code { unsafe try region.copy(UnsafeRawBufferPointer(buffer), toByteOffset: 4097) }
      let outOf = code { unsafe try region.copy(fromByteOffset: -1, into: buffer) }
      #expect(into == .outOfBounds && outOf == .outOfBounds)
      try unsafe region.copy(UnsafeRawBufferPointer(buffer), toByteOffset: 0)
      unsafe buffer.initializeMemory(as: UInt8.self, repeating: 0)
      try unsafe region.copy(fromByteOffset: 0, into: buffer)
    }
    #expect(bytes.allSatisfy { $0 == 3 })
    for pages in [0..<3, -1..<1, 2..<3] {
      #expect(code { _ = try region.addresses(of: pages) } == .outOfBounds)
      #expect(code { try region.protect(pages) } == .outOfBounds)
      #expect(code { try region.discard(pages) } == .outOfBounds)
    }
    #expect(region.page(at: region.addresses.start + 4096) == 1)
    #expect(region.page(at: region.addresses.end) == nil)
    try space.close()
  }

  @Test("a region has at least one page") func counts() throws {
    let space = try AddressSpace.forTests()
    for pages in [0, -1, Int.max] { #expect(code { _ = try space.map(pages: pages) } == .invalidArgument) }
    try space.close()
  }

  @Test("after unmap every call throws") func useAfterUnmap() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 4)
    let tracker = try region.trackWrites(.handlerThread)
    try region.unmap()
    let calls: [() throws -> Void] = [
      { try region.unmap() }, { try region.store(1, toByteOffset: 0) },
      { _ = try region.load(fromByteOffset: 0, as: Int.self) }, { try region.discard(0..<1) },
      { try region.protect(0..<1) }, { _ = try region.trackWrites() }, { _ = try tracker.collect() },
      { try tracker.pause() }, { try tracker.resume() }, { try unsafe region.withUnsafeMutableBytes { _ in } },
    ]
    for call in calls { #expect(code(call) == .unmapped) }
    try tracker.stop()
    #expect(space.mappedRegions.isEmpty)
    try space.close()
    try space.close()
    #expect(code { _ = try space.map(pages: 1) } == .unmapped)
  }

  @Test("a region that is mapped while its space closes is unmapped, or is none") func mappedWhileClosing() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      let first = try space.map(.anonymous, pages: 4)
      let tracker = try first.trackWrites(.handlerThread)
      let closing = Shared()
      TestHooks.set(.enrolling) { _ in
        // It has looked, and found the space open.
        TestHooks.set(.enrolling, nil)
        do { try space.close() } catch { check(false, "\(error)") }
        closing.value = 1
      }
      // With nobody to serve its faults, a write to it would hang.
      check(errorCode { _ = try space.map(.anonymous, pages: 4).trackWrites(.handlerThread) }, is: .unmapped)
      check(closing.value == 1 && space.mappedRegions.isEmpty, "\(space.mappedRegions)")
      try tracker.stop()
    }
  }

  @Test("a call that would wait for its own thread is an error") func wouldDeadlock() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 4)
    try unsafe region.withUnsafeMutableBytes { _ in
      #expect(code { try region.unmap() } == .wouldDeadlock)
      #expect(code { try space.close() } == .wouldDeadlock)
    }
    let findings = Findings()
    let holder = Holder()
    let tracker = try region.trackWrites(.handlerThread) { _ in
      guard let tracker = holder.tracker else { return }
      let calls: [() throws -> Void] = [
        { _ = try tracker.collect() }, { try tracker.stop() }, { try tracker.pause() },
        { try tracker.region.protect(0..<1) }, { try tracker.region.discard(0..<1) }, { try tracker.region.unmap() },
      ]
      for call in calls {
        do { try call() } catch let error as PinError where error.code == .wouldDeadlock { continue } catch {}
        findings.note("a call from a fault callback did not throw .wouldDeadlock")
      }
    }
    holder.tracker = tracker
    try region.store(1, toByteOffset: 0)
    #expect(findings.all == [])
    holder.tracker = nil
    try space.close()
  }

  private final class Holder: Sendable {
    private let held = Mutex<WriteTracker?>(nil)
    var tracker: WriteTracker? {
      get { held.withLock { $0 } }
      set { held.withLock { $0 = newValue } }
    }
  }

  @Test("dropping a region with its tracker gives everything up", arguments: Mechanisms.all)
  func dropped(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    weak var gone: Region?
    do {
      let region = try space.map(.anonymous, pages: 4)
      let tracker = try region.trackWrites(mechanism)
      try region.store(1, toByteOffset: 0)
      #expect(try tracker.collect().count == 1)
      gone = region
    }
    #expect(gone == nil)
    #expect(space.mappedRegions.isEmpty)
    try space.close()
  }

  @Test("protection is enforced, by error through the API, and lifted again", arguments: Mechanisms.all)
  func protect(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 8)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    try region.protect(2..<4)
    try region.protect(4..<5, to: .none)
    #expect(code { try region.store(2, toByteOffset: 3 * 4096) } == .accessDenied)
    #expect(code { try region.store(2, toByteOffset: 2 * 4096 - 4) } == .accessDenied)
    #expect(code { _ = try region.load(fromByteOffset: 4 * 4096, as: UInt8.self) } == .accessDenied)
    #expect(code { try region.discard(1..<3) } == .accessDenied)
    #expect(try region.load(fromByteOffset: 3 * 4096, as: UInt8.self) == 1)
    try region.store(UInt8(2), toByteOffset: 5 * 4096)
    #expect(try tracker.collect().runs == [5..<6])
    try region.protect(0..<8, to: .readWrite)
    #expect(try tracker.collect().isEmpty)
    try region.store(UInt8(2), toByteOffset: 3 * 4096)
    try region.store(UInt8(2), toByteOffset: 4 * 4096)
    #expect(try tracker.collect().runs == [3..<5])
    try space.close()
  }
}
