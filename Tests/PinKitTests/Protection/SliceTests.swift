import CTestSupport
import Glibc
import Synchronization
import SystemPackage
import Testing

@testable import PinKit

/// Regions that are cut into slices, each registered with a userfaultfd of its own.
@Suite("Slices of large regions") struct SliceTests {
  private static let slices = RegionSlices(smallest: 64 << 10, most: 4)
  /// Four slices of sixteen.
  private static let pages = 64

  private static func domain(_ region: Region) throws -> UnsafeMutablePointer<FaultDomain> {
    try unsafe region.protection().domain
  }

  // MARK: How a region is cut

  private static func shift(_ bytes: Int, _ slices: RegionSlices) -> Int {
    slices.shift(addresses: AddressRange(start: 64 << 20, count: bytes), pageSize: 4096)
  }

  @Test("As many slices as asked for at most, none of them small") func cut() {
    let slices = RegionSlices(smallest: 32 << 20, most: 16)
    func count(_ bytes: Int) -> Int { (bytes / 4096 - 1) >> Self.shift(bytes, slices) + 1 }
    #expect([4096, 32 << 20, 63 << 20].map(count) == [1, 1, 1])
    #expect([64 << 20, 96 << 20, 512 << 20, 1 << 30, 1 << 40].map(count) == [2, 3, 16, 16, 16])
    #expect(count(528 << 20) == 9, "17 do not fit, and a slice is a power of two")
    // The end of a slice is no end of a huge page.
    #expect(slices.shift(addresses: AddressRange(start: 4096, count: 1 << 30), pageSize: 4096) == RegionSlices.whole)
    #expect(Self.shift(1 << 30, RegionSlices(smallest: 32 << 20, most: 1)) == RegionSlices.whole)
  }

  @Test("A region of 256 MiB has a userfaultfd for each processor, up to sixteen; one that is small has one")
  func automatic() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let (small, large) = (
        try space.map(.anonymous(hugePages: .never), pages: 64), try space.map(.anonymous(), pages: 65_536)
      )
      let before = ct_userfaultfd_count()
      let first = try small.trackWrites(.handlerThread)
      // Each has a spare.
      check(ct_userfaultfd_count() - before, is: 2)
      let second = try large.trackWrites(.handlerThread)
      let expected = min(Kernel.processorCount, 8)
      let count = Int(ct_userfaultfd_count() - before) / 2 - 1
      check(count > expected / 2 && count <= expected, "\(count) for \(Kernel.processorCount) processors")
      try first.stop()
      try second.stop()
      check(ct_userfaultfd_count(), is: before)
      try space.close()
    }
  }

  // MARK: Sets

  @Test("K1, W5: sets are exact across slices", arguments: Mechanisms.all)
  func exact(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests(slices: Self.slices)
    for backing in [Backing.anonymous(hugePages: .never), .pool] {
      let region = try space.map(backing, pages: Self.pages)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(mechanism, options: .init(faultAround: .exact))
      _ = try tracker.collect()
      #expect(unsafe try Self.domain(region).pointee.sliceCount == 4)
      for pages in [[0, 15, 16, 31, 32, 63], [14, 15, 16, 17], Array(0..<Self.pages), [47, 48]] {
        for page in pages { try region.store(UInt8(3), toByteOffset: page * 4096) }
        #expect(try Array(tracker.collect().pages) == pages)
        #expect(try tracker.collect().isEmpty)
      }
      try tracker.stop()
      try region.unmap()
    }
    try space.close()
  }

  @Test("W5: no fault takes pages of another slice along, which the kernel may refuse to open with the rest")
  func refusedBeyond() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests(slices: SliceTests.slices)
      let region = try space.map(.anonymous(hugePages: .never), pages: SliceTests.pages)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(.handlerThread, options: .init(faultAround: .fixed(8)))
      _ = try tracker.collect()
      // What is opened by a second call stays protected, for as long as this goes on.
      Injection.arm(.unprotect, .resourceTemporarilyUnavailable, skip: 1, times: 1_000_000)
      try region.store(UInt8(2), toByteOffset: 12 * 4096)
      try region.store(UInt8(2), toByteOffset: 13 * 4096)
      let set = try tracker.collect()
      Injection.disarm()
      check(set.runs, is: [12..<16])
      try tracker.stop()
      try space.close()
    }
  }

  @Test(
    "W5: what others remove across slices is in the next set", arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func removal(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests(slices: Self.slices)
    let region = try space.map(.anonymous(hugePages: .never), pages: Self.pages)
    try region.fill(with: 1)
    let tracker = try region.trackWrites(mechanism)
    _ = try tracker.collect()
    try Memory.advise(region.addresses(of: 10..<50), .dontNeed)
    #expect(try tracker.collect().runs == [10..<50])
    try region.store(UInt8(2), toByteOffset: 33 * 4096)
    #expect(try tracker.collect().runs == [33..<34])
    try tracker.stop()
    try space.close()
  }

  @Test("K7: under mprotect a fault for which there is no mapping opens pages of other slices, too, up to the whole region")
  func widening() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests(slices: SliceTests.slices)
      let region = try space.map(.anonymous(hugePages: .never), pages: SliceTests.pages)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(.mprotect)
      _ = try tracker.collect()
      Injection.arm(.mprotect, .noMemory)
      try region.store(UInt8(9), toByteOffset: 7 * 4096)
      let dirty = try tracker.collect()
      check(dirty.exactPages.runs, is: [7..<8])
      check(dirty.runs, is: [0..<SliceTests.pages])
      try space.close()
    }
  }

  // MARK: Snapshots and clones

  @Test("W2, W4: snapshots, clones, discards and restores go across slices, and keep them")
  func copies() throws {
    let space = try AddressSpace.forTests(slices: Self.slices)
    let region = try space.map(.pool, pages: Self.pages)
    for page in 0..<Self.pages { try region.store(UInt8(page), toByteOffset: page * 4096) }
    let snapshot = try region.snapshot()
    let clone = try region.clone()
    #expect(unsafe try Self.domain(clone).pointee.sliceCount == 4)
    for page in 0..<Self.pages { try region.store(UInt8(page + 100), toByteOffset: page * 4096) }
    try clone.discard(8..<56)
    for page in 12..<20 { try clone.store(UInt8(200), toByteOffset: page * 4096) }
    for page in 0..<Self.pages {
      #expect(try snapshot.read(page)[0] == UInt8(page))
      #expect(try region.load(fromByteOffset: page * 4096, as: UInt8.self) == UInt8(page + 100))
      let expected = (12..<20).contains(page) ? 200 : (8..<56).contains(page) ? 0 : UInt8(page)
      #expect(try clone.load(fromByteOffset: page * 4096, as: UInt8.self) == expected, "page \(page)")
    }
    let tracker = try clone.trackWrites(.handlerThread)
    _ = try tracker.collect()
    for page in [15, 16, 55, 56] { try clone.store(UInt8(9), toByteOffset: page * 4096) }
    #expect(try Array(tracker.collect().pages) == [15, 16, 55, 56])
    #expect(unsafe try Self.domain(clone).pointee.sliceCount == 4)
    try tracker.stop()
    snapshot.close()
    try space.close()
  }

  // MARK: Descriptors

  @Test(
    "K5: a slice whose descriptor others close goes on with its spare",
    arguments: [WriteTracking.Mechanism.handlerThread, .inPlace])
  func closedDescriptor(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let tracked = try Tracked(mechanism, pages: SliceTests.pages, configure: { $0.slices = SliceTests.slices })
      let domain = try unsafe tracked.region.protection().domain
      for slice in [2, 0, 3] {
        let closed = unsafe domain.pointee.channels[slice].listening
        close(closed)
        try tracked.expectExact([3, 19, 35, 51])
        check(spin { unsafe domain.pointee.channels[slice].listening != closed }, "slice \(slice) has the closed one")
        check(spin { unsafe domain.pointee.channels[slice].spareDescriptor.load(ordering: .acquiring) >= 0 }, "no spare")
      }
      try tracked.close()
    }
  }

  @Test("K3, K5: with both descriptors of one slice closed the region has failed") func bothClosed() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let tracked = try Tracked(
        .handlerThread, pages: SliceTests.pages,
        configure: {
          $0.slices = SliceTests.slices
          $0.failurePolicy = .failRegion
        })
      let domain = try unsafe tracked.region.protection().domain
      // The watchdog has not noticed when the set is asked for.
      let (looks, mayLook) = (Shared(), Shared())
      TestHooks.set(.watching) { _ in
        looks.add()
        _ = spin { mayLook.value == 1 }
      }
      check(spin { looks.value == 1 }, "the watchdog does not look")
      for number in unsafe [
        domain.pointee.channels[3].spareDescriptor.load(ordering: .acquiring), domain.pointee.channels[3].listening,
      ] {
        close(number)
      }
      check(errorCode { _ = try tracked.tracker.collect() } == .handlerLost, "collected")
      mayLook.value = 1
      // Whoever writes goes on, in each slice.
      for page in [60, 3, 20, 40] { try tracked.region.store(UInt8(1), toByteOffset: page * 4096) }
      TestHooks.set(.watching, nil)
    }
  }

  @Test("Where there are no descriptors for slices, or the budget is spent, a region is one") func scarceDescriptors() async
  {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests(slices: SliceTests.slices)
      _ = try space.faultHandler()
      let region = try space.map(.anonymous(hugePages: .never), pages: SliceTests.pages)
      let before = ct_userfaultfd_count()
      let domain = try unsafe region.protection().domain
      unsafe check(domain.pointee.sliceCount, is: 4)
      check(ct_limit_files(6), is: 0)
      let tracker = try region.trackWrites(.handlerThread)
      check(ct_restore_file_limit(), is: 0)
      check(ct_userfaultfd_count() - before, is: 2)
      unsafe check(domain.pointee.sliceCount, is: 1)
      for page in [15, 16, 63] { try region.store(UInt8(9), toByteOffset: page * 4096) }
      try check(Array(tracker.collect().pages), is: [15, 16, 63])
      try tracker.stop()
      check(SliceBudget.take(1 << 30), is: false)
      try space.close()
    }
  }

  @Test("W5: a page of a shared frame takes none along into another file, also where its region is one slice")
  func filesOfOneSlice() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests(slices: SliceTests.slices)
      _ = try space.faultHandler()
      try check(space.framePool().files.count >= 2 || Kernel.descriptorLimit < 128, "the pool has one file")
      let region = try space.map(.pool, pages: SliceTests.pages)
      for page in 0..<SliceTests.pages { region.poke(UInt8(page), page) }
      check(ct_limit_files(8), is: 0)
      let clone = try region.clone()
      check(ct_restore_file_limit(), is: 0)
      for region in [region, clone] { try unsafe check(region.protection().domain.pointee.sliceCount, is: 1) }
      // Whoever breaks away takes more and more along.
      for page in stride(from: 0, to: SliceTests.pages, by: 3) { region.poke(UInt8(page + 100), page) }
      for page in 0..<SliceTests.pages {
        check(region.peek(page), is: UInt8(page.isMultiple(of: 3) ? page + 100 : page), "page \(page)")
        check(clone.peek(page), is: UInt8(page), "page \(page) of the clone")
      }
      try space.close()
    }
  }

  @Test("The budget for slices comes back with the regions") func budget() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(60)
      let space = try AddressSpace.forTests(slices: SliceTests.slices)
      for _ in 0..<2_000 {
        let region = try space.map(.anonymous(hugePages: .never), pages: SliceTests.pages)
        try unsafe check(region.protection().domain.pointee.sliceCount, is: 4)
        try region.unmap()
      }
      try space.close()
    }
  }
}
