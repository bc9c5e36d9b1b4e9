import CTestSupport
import Glibc
import Testing

@testable import PinKit
@testable import PinKitCrypto

@Suite(
  "Plain bytes of sealed pages of regions",
  .enabled(if: ct_has_sanitizer() == 0, "a sanitizer keeps copies, and maps terabytes"))
struct SealedNowhereTests {
  @Test("S5: while a page is sealed its plain bytes are nowhere in the process, whatever was done with it before")
  func nowhere() async { await #expect(processExitsWith: .success) { try Self.inChild() } }

  private static func inChild() throws {
    ct_deadline(100)
    let secret = MemoryScan(count: 4096)
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: 64)
    try region.setSealer(AESGCMSealer())
    func place() throws {
      try unsafe region.withUnsafeMutableBytes { bytes in
        unsafe secret.place(in: UnsafeMutableRawBufferPointer(rebasing: bytes[9 * 4096..<10 * 4096]))
      }
    }
    try place()
    check(secret.places(of: 0..<32).count >= 1, "it is there while the page is open")
    try region.seal(9..<10)
    secret.expectNowhere("after sealing")
    // Everything that copies pages, on the way.
    let tracker = try region.trackWrites()
    let snapshot = try region.snapshot()
    try place()
    try region.seal(9..<10)
    secret.expectNowhere("with a snapshot of when it was sealed")
    try region.makeAccessible(9..<10)
    snapshot.close()
    let plain = try region.snapshot()
    try region.setByte(1, 10)
    try place()
    check(errorCode { try region.seal(9..<10) } == .busy, "a snapshot has its plain bytes")
    plain.close()
    try region.endSnapshots()
    try region.seal(9..<10)
    secret.expectNowhere("after a snapshot of its plain bytes was closed")
    try region.makeAccessible(9..<10)
    let brief = try region.snapshot()
    try place()
    brief.close()
    try region.seal(9..<10)
    secret.expectNowhere("after one was closed whose memory the next could use")
    try region.makeAccessible(9..<10)
    let clone = try region.clone()
    clone.poke(clone.peek(9), 9)
    check(secret.places(of: 0..<32).count >= 2, "the clone has a copy")
    try clone.unmap()
    try region.seal(9..<10)
    secret.expectNowhere("after a clone had a copy, and is gone")
    let pin = try region.pin(9..<10, [.write])
    pin.unpin()
    let mirror = try SecondaryMMU(region)
    try mirror.translate(9, for: .writing)
    try region.seal(9..<10)
    secret.expectNowhere("after a pin and a mirror")
    mirror.close()
    let file = try region.pin(9..<10)
    check(unsafe file.withUnsafeBytes { unsafe secret.isAt($0) }, "its bytes are what they were")
    file.unpin()
    try region.discard(9..<10)
    secret.expectNowhere("after it was discarded")
    try tracker.stop()
    try place()
    try region.seal(9..<10)
    try space.close()
    secret.expectNowhere("after the space was closed")
  }

  @Test("S5: a core dump of a process with sealed pages has no piece of them, nor of pages that are open")
  func coreDump() async throws {
    // A dump leaves out what the kernel was told to leave out; what is in it is what /proc/self/smaps does not mark "dd".
    await #expect(processExitsWith: .success) { try Self.dumpedInChild() }
  }

  private static func dumpedInChild() throws {
    ct_deadline(60)
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: 64)
    try region.setSealer(AESGCMSealer())
    try region.setByte(1, 3)
    try region.seal(0..<32)
    for address in [
      region.addresses.start, UInt(region.frames!.directAddress(of: 0)), UInt(region.frames!.directAddress(of: 40)),
    ] {
      let details = try ProcessMaps.details(at: address)
      check(details.flags.contains("dd"), "\(String(address, radix: 16)) would be in a core dump")
    }
    try space.close()
  }
}
