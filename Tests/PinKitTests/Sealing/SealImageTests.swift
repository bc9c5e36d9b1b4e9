import CTestSupport
import Synchronization
import Testing

@testable import PinKit
@testable import PinKitCrypto

@Suite(
  "Buffers of images of sealed regions",
  .enabled(if: ct_has_sanitizer() == 0, "a sanitizer keeps copies, and maps terabytes"))
struct SealImageTests {
  /// A region with a sealer, of which one page will hold the secret, and a place for its images.
  private static func prepare() throws -> (MemoryScan, ImageDirectory, AddressSpace, Region) {
    ct_deadline(100)
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: 64)
    try region.setSealer(AESGCMSealer())
    return (MemoryScan(count: 4096), try ImageDirectory(), space, region)
  }

  private static func place(_ secret: MemoryScan, _ page: Int, of region: Region) throws {
    try unsafe region.withUnsafeMutableBytes { bytes in
      unsafe secret.place(in: UnsafeMutableRawBufferPointer(rebasing: bytes[page * 4096..<(page + 1) * 4096]))
    }
  }

  @Test("S5: the buffers that an image went through are wiped before their memory is given back, also when it is given up")
  func buffers() async { await #expect(processExitsWith: .success) { try Self.buffersInChild() } }

  private static func buffersInChild() throws {
    let (secret, directory, space, region) = try prepare()
    try place(secret, 9, of: region)
    let freed = Shared()
    let found = Findings()
    TestHooks.set(.freeingBuffers) { start in
      freed.add()
      let size = BlockBuffers.count * ImageBlocks.size
      for place in secret.places() where (start..<start + size).contains(Int(place)) { found.note("at \(place)") }
      if let details = try? ProcessMaps.details(at: UInt(start)) {
        for flag in ["dd", "dc"] where !details.flags.contains(flag) { found.note("\(flag) is not set") }
      }
    }
    let snapshot = try region.snapshot()
    let image = try snapshot.write(to: directory("image"))
    check(freed.value, is: 1)
    check(found.all, is: [], "written")
    let steps = Shared()
    let code = errorCode {
      try snapshot.write(to: directory("cancelled")) { _ in steps.add() > 1 ? .cancel : .proceed }
    }
    check(code, is: .cancelled)
    check(freed.value, is: 2)
    check(found.all, is: [], "cancelled")
    snapshot.close()
    try region.restore(from: [image])
    check(freed.value, is: 4)
    check(found.all, is: [], "restored")
    TestHooks.set(.freeingBuffers, nil)
    try region.endSnapshots()
    try region.seal(0..<64)
    secret.expectNowhere("after the region was sealed")
    try region.makeAccessible(9..<10)
    try check(
      unsafe region.withUnsafeMutableBytes {
        unsafe secret.isAt(UnsafeRawBufferPointer(rebasing: $0[9 * 4096..<10 * 4096]))
      }, "restored")
    try space.close()
  }

  @Test("S5: no copy of a page is left by looking whether it has to be restored, nor by reading a snapshot in runs")
  func copies() async { await #expect(processExitsWith: .success) { try Self.copiesInChild() } }

  private static func copiesInChild() throws {
    let (secret, directory, space, region) = try prepare()
    for page in 0..<64 where page != 9 { try region.setByte(1, page) }
    let empty = try region.snapshot()
    let image = try empty.write(to: directory("image"))
    empty.close()
    try place(secret, 9, of: region)
    try region.restore(from: [image])
    try check(region.byte(9), is: 0)
    try region.endSnapshots()
    secret.expectNowhere("after its page was restored to zeros")

    try place(secret, 9, of: region)
    let snapshot = try region.snapshot()
    var runs = 0
    try unsafe snapshot.forEachStoredRun(upTo: 8) { (_, _) in runs += 1 }
    check(runs > 1, "\(runs) runs")
    snapshot.close()
    try region.endSnapshots()
    try region.seal(9..<10)
    secret.expectNowhere("after a snapshot was read in runs")
    try space.close()
  }
}
