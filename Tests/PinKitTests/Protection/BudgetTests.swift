import CTestSupport
import Testing

@testable import PinKit

/// K7: what a fault does where the share of `vm.max_map_count` is used up, by this region or by another.
@Suite("A spent share of mappings") struct BudgetTests {
  private static let pages = 16_384

  @Test("K7: the first write of a region opens one block, not the region")
  func block() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let tracked = try Tracked(.mprotect, pages: Self.pages)
      MappingBudget.add(1 << 30)
      let before = tracked.space.statistics.faultAroundPages
      ct_store(tracked.address(of: 5000), 9)
      let around = tracked.space.statistics.faultAroundPages - before
      check(around > 0 && around <= 1024, "\(around) pages were opened with it")
      try check(tracked.tracker.collect().contains(5000), "lost")
      // One near another: joined.
      ct_store(tracked.address(of: 8000), 9)
      ct_store(tracked.address(of: 8600), 9)
      let both = try tracked.tracker.collect()
      check(both.contains(8000) && both.contains(8600), "lost")
      check(both.count <= 3 * 1024, "\(both.count) pages were opened")
      MappingBudget.add(-(1 << 30))
      try tracked.close()
    }
  }

  @Test("W6: a snapshot at its limit is not given up for neighbours that nobody wrote")
  func snapshot() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(240)
      let space = try AddressSpace.forTests()
      let region = try space.map(.anonymous(hugePages: .never), pages: Self.pages)
      try region.fill(with: 1)
      let snapshot = try region.snapshot(
        SnapshotOptions(mechanism: .mprotect, captureLimit: 16 * 4096, atLimit: .giveUp))
      MappingBudget.add(1 << 30)
      ct_store(UInt64(region.addresses.start) + 5000 * 4096, 9)
      check(snapshot.failure == nil, "given up: \(String(describing: snapshot.failure))")
      try check(snapshot.read(5000)[0], is: 1)
      try check(snapshot.read(5001)[0], is: 1)
      MappingBudget.add(-(1 << 30))
      snapshot.close()
      try space.close()
    }
  }
}
