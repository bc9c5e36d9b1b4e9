import Testing

@testable import PinKit

/// Telling pages with bytes from pages that only have no frame of theirs at the moment.
@Suite("Pages with bytes") struct PopulatedTests {
  @Test("K4: only an empty entry, a mark or a guard has no bytes; whatever else is away has some") func entries() {
    let away = PagemapEntry.swapped
    let marked = PagemapEntry.writeProtected
    for (entry, expected) in [
      (0, .nowhere), (marked, .nowhere), (PagemapEntry.present | 4711, .inMemory),
      // An entry of a swap device, the three of a page under migration, the one of a page with a broken frame.
      (away | 1 << 5, .away), (away | 28 | 99 << 5, .away), (away | 29 | 99 << 5, .away),
      (away | marked | 30 | 99 << 5, .away),
      (away | 27 | 99 << 5, .away), (away | marked | 31 | 1 << 5, .nowhere), (away | PagemapEntry.guarded, .nowhere),
      (away, .hidden), (away | marked, .hidden),
    ] as [(UInt64, PagemapEntry.Residence)] {
      #expect(PagemapEntry.residence(entry) == expected, "\(String(entry, radix: 16))")
    }
  }

  @Test("K4: who may not see entries asks whether a page is in core, and asks nobody where there is swap")
  func core() throws {
    let memory = try Mapping(count: 4 * Memory.pageSize)
    try Memory.advise(memory.range, .noHugePages)
    Memory.touch(memory.range.start + UInt(Memory.pageSize))
    #expect(MemoryResidence.find(memory.range, hasSwap: { false }) == [false, true, false, false])
    #expect(MemoryResidence.find(memory.range, hasSwap: { true }) == nil)
    var asked = 0
    let found = MemoryResidence.find(memory.range) {
      asked += 1
      return asked > 1
    }
    #expect(found == nil, "a device that came meanwhile")
  }
}
