import CTestSupport
import Glibc
import Testing

@testable import PinKit

@Suite("Targets that cannot be written, and pages whose bytes are not to be had") struct BadTargetTests {
  @Test("K6: a target that cannot be written is named, and costs no page of adopted memory") func targets() throws {
    let memory = try ForeignMemory(.adoptedAnonymous, pages: 8)
    let target = try ForeignMemory(.adoptedAnonymous, pages: 4)
    defer {
      memory.unmap()
      target.unmap()
    }
    let space = try AddressSpace.forTests()
    let region = try space.adopt(memory.range)
    try region.fill(with: 3)
    let bytes = unsafe UnsafeMutableRawBufferPointer(
      start: UnsafeMutableRawPointer(bitPattern: target.range.start), count: target.range.count)
    let snapshot = try region.snapshot()
    for hidden in [false, true] {
      if hidden { try region.protect(2..<6, to: .none) }
      // The second page of the target.
      #expect(Memory.protect(AddressRange(start: target.range.start + 4096, count: 4096), .read) == 0)
      #expect(errorCode { try unsafe snapshot.copy(2..<6, into: bytes) } == .invalidArgument)
      if !hidden {
        #expect(errorCode { try unsafe region.copy(fromByteOffset: 2 * 4096, into: bytes) } == .invalidArgument)
      }
      #expect(Memory.protect(target.range, .readWrite) == 0)
      try unsafe snapshot.copy(2..<6, into: bytes)
      for page in 0..<4 { #expect(unsafe bytes[page * 4096] == 3) }
    }
    #expect(snapshot.failure == nil)
    snapshot.close()
    try region.unmap()
    try space.close()
  }

  @Test("K6: a page that nobody may read has bytes, whatever else goes wrong in reading it") func hidden() throws {
    let memory = try ForeignMemory(.adoptedAnonymous, pages: 3)
    defer { memory.unmap() }
    let start = memory.range.start
    unsafe UnsafeMutableRawPointer(bitPattern: start)!.storeBytes(of: 7, as: UInt8.self)
    #expect(Memory.protect(AddressRange(start: start, count: 4096), []) == 0)
    #expect(unsafe munmap(UnsafeMutableRawPointer(bitPattern: start + 8192), 4096) == 0)
    let reader = try ProcessMemory()
    var byte: UInt8 = 0
    #expect(unsafe reader.read(start, into: &byte, count: 1) == 0 && byte == 7)
    #expect(unsafe reader.meansNoBytes(reader.read(start + 8192, into: &byte, count: 1)))
    for errno in [EBADF, EFAULT, ENOMEM, EPERM] { #expect(!reader.meansNoBytes(-errno)) }
  }

  @Test(
    "P8, K6: a long-term pin that meets a page without bytes is refused, wherever that is",
    .enabled(if: GuardPages.areKnown, "needs MADV_GUARD_INSTALL (Linux 6.13)"), arguments: Mechanisms.synchronous)
  func pins(_ mechanism: WriteTracking.Mechanism) throws {
    let memory = try ForeignMemory(.adoptedAnonymous, pages: 8)
    defer { memory.unmap() }
    let space = try AddressSpace.forTests()
    let region = try space.adopt(memory.range)
    let tracker = try region.trackWrites(mechanism)
    #expect(GuardPages.install(memory.range, 3))
    #expect(errorCode { try region.pin(1..<6, [.write, .longTerm]).unpin() } == .inaccessible)
    #expect(try !region.mayBePinned(1))
    #expect(GuardPages.remove(memory.range, 3))
    try region.pin(1..<6, [.write, .longTerm]).unpin()
    try tracker.stop()
    try region.unmap()
    try space.close()
  }

  @Test("P10: a pin for reading does not wait for a snapshot that is to be given up", arguments: Mechanisms.synchronous)
  func readPins(_ mechanism: WriteTracking.Mechanism) throws {
    var configuration = AddressSpace.Configuration()
    configuration.patience = 5
    let space = try AddressSpace(configuration: configuration)
    let template = try space.map(.pool, pages: 4)
    try template.fill(with: 1)
    let clone = try template.clone(mechanism: mechanism)
    let snapshot = try clone.snapshot(.init(captureLimit: 0, atLimit: .giveUp))
    try clone.pin(1..<2, .unshare).unpin()
    #expect((snapshot.failure == nil) == (mechanism == .mprotect), "it costs the snapshot only where a write might get in")
    snapshot.close()
    try clone.unmap()
    try space.close()
  }
}
