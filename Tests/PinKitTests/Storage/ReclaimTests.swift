import Synchronization
import Testing

@testable import PinKit

@Suite("Reclaiming pages of a store") struct ReclaimTests {
  /// A device that used pages lately.
  private final class Device: MMUNotifier {
    let young = Mutex<Set<Int>>([])
    let log = Findings()
    func invalidateRangeStart(_ range: InvalidationRange) -> InvalidationResponse {
      log.note("start \(range.event) \(range.pages)")
      return .done
    }
    func invalidateRange(_ range: InvalidationRange) {
      let isCleared = range.pages.allSatisfy { range.region.table[$0].contains(.cleared) }
      let isThere = range.pages.contains { range.region.attachments.find(FilePages.self)?.present.contains($0) == true }
      log.note("middle \(range.pages)\(isCleared ? "" : " not cleared")\(isThere ? "" : " gone already")")
    }
    func invalidateRangeEnd(_ range: InvalidationRange) {
      let isCleared = range.pages.contains { range.region.table[$0].contains(.cleared) }
      log.note("end \(range.pages)\(isCleared ? " still cleared" : "")")
    }
    func testYoung(_ pages: Range<Int>, of region: Region) -> Bool { young.withLock { !$0.isDisjoint(with: pages) } }
    func clearFlushYoung(_ pages: Range<Int>, of region: Region) -> Bool {
      young.withLock { set in
        let found = !set.isDisjoint(with: pages)
        set.subtract(pages)
        return found
      }
    }
  }

  @Test("N5, N13: A page that a device used stays once; those that go are announced, taken away, and only then gone")
  func devices() throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    for page in 0..<8 { _ = region.peek(page) }
    let device = Device()
    let subscription = try region.subscribe(device)
    device.young.withLock { $0 = [2] }
    #expect(try region.reclaim(0..<8) == 7)
    #expect(device.log.all == ["start clear 0..<8", "middle 0..<2", "middle 3..<8", "end 0..<8"])
    #expect(try region.reclaim(0..<8) == 1)
    subscription.remove()
    try space.close()
  }

  @Test("N12: A secondary MMU keeps nothing in memory, and never sees the bytes of a page that is not there") func mirrors()
    throws
  {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: 8)
    let region = try space.map(.file(store, fillAround: .exact), pages: 8)
    let mirror = try SecondaryMMU(region)
    func read(_ page: Int) throws -> UInt8 { unsafe try mirror.withBytes(of: page, for: .reading) { unsafe $0[0] } }
    func write(_ value: UInt8, _ page: Int) throws {
      unsafe try mirror.withBytes(of: page, for: .writing) { unsafe $0[0] = value }
    }
    #expect(try read(3) == 4)
    try write(77, 5)
    #expect(region.peek(5) == 77)
    try region.flush()
    #expect(store.durableByte(5) == 77, "what a device writes is written back")
    #expect(try read(3) == 4 && read(5) == 77)
    #expect(try region.reclaim(0..<8) == 0, "the device used them since")
    #expect(try region.reclaim(0..<8) == 2)
    #expect(try read(3) == 4)
    #expect(try read(5) == 77)
    try write(78, 5)
    try region.flush()
    #expect(store.durableByte(5) == 78)
    mirror.close()
    try space.close()
  }

  @Test("A subscriber that would block, or refuses, keeps the pages") func refusing() throws {
    var configuration = AddressSpace.Configuration()
    configuration.patience = 0.05
    let space = try AddressSpace(configuration: configuration)
    let store = UnrulyStore(pages: 4)
    let region = try space.map(.file(store, fillAround: .exact), pages: 4)
    for page in 0..<4 { _ = region.peek(page) }
    let refusing = Shared(1)
    let subscription = try region.subscribe(RecordingNotifier { _ in refusing.value == 1 ? .wouldBlock : .done })
    #expect(errorCode { try region.reclaim(0..<4) } == .timedOut)
    #expect(try (0..<4).allSatisfy { try region.filePageState($0).isPresent })
    refusing.value = 0
    #expect(try region.reclaim(0..<4) == 4)
    subscription.remove()
    try space.close()
  }
}
