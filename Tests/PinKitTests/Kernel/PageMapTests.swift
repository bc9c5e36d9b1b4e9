import Testing

@testable import PinKit

private let hasScan = Capabilities.attempt { () throws(PinError) in
  let page = try Mapping(count: Memory.pageSize)
  let descriptor = try Userfaultfd(features: [.wpAsync])
  try descriptor.register(page.range, for: .writeProtect)
  try PageMap().scan(page.range, PageMap.Query(required: .written)) { _, _ in }
}.didWork
private let page = Memory.pageSize

@Suite("PageMap", .enabled(if: hasScan, "needs PAGEMAP_SCAN and WP_ASYNC"))
final class PageMapTests {
  /// More runs than one call's buffer holds, so that `walk_end` has to be followed.
  private static let pages = 2 * 2 * 4096 + 2 * 100
  private let memory: Mapping
  private let descriptor: Userfaultfd

  init() throws {
    memory = try Mapping(count: Self.pages * page)
    try Memory.advise(memory.range, .noHugePages)
    descriptor = try Userfaultfd(features: [.wpAsync, .wpUnpopulated])
    try descriptor.register(memory.range, for: .writeProtect)
    #expect(try descriptor.writeProtect(memory.range) == .done)
  }

  private func dirtyEverySecondPage() {
    for index in stride(from: 0, to: Self.pages, by: 2) {
      unsafe fill(AddressRange(start: memory.range.start + UInt(index * page), count: 1), with: 1)
    }
  }

  private var written: PageMap.Query { PageMap.Query(required: .written, writeProtects: true) }

  @Test("a scan of more runs than a buffer holds reports each once, in order, and protects it")
  func manyRuns() throws {
    dirtyEverySecondPage()
    let map = try PageMap()
    var starts: [UInt] = []
    try map.scan(memory.range, written) { range, categories in
      #expect(range.count == page)
      #expect(categories.contains(.written))
      starts.append(range.start)
    }
    #expect(starts == stride(from: 0, to: Self.pages, by: 2).map { memory.range.start + UInt($0 * page) })

    // A page that another process has the kernel move at that moment (compaction) is not protected, and is reported once more.
    var again: Set<UInt> = []
    try map.scan(memory.range, written) { range, _ in
      for start in stride(from: range.start, to: range.end, by: page) { again.insert(start) }
    }
    #expect(again.isSubset(of: starts))
    #expect(again.count < Self.pages / 4)
    again = []
    dirtyEverySecondPage()
    try map.scan(memory.range, written) { range, _ in
      for start in stride(from: range.start, to: range.end, by: page) { again.insert(start) }
    }
    #expect(again == Set(starts))
  }

  @Test("a run longer than the kernel's own batch is not cut")
  func longRun() throws {
    unsafe fill(memory.range, with: 1)
    var runs: [AddressRange] = []
    try PageMap().scan(memory.range, PageMap.Query(required: .written)) { range, _ in runs.append(range) }
    #expect(runs == [memory.range])
  }

  @Test("protecting without reporting clears what was written")
  func writeProtect() throws {
    dirtyEverySecondPage()
    let map = try PageMap()
    try map.writeProtect(memory.range, PageMap.Query(required: .written))
    var left = 0
    try map.scan(memory.range, PageMap.Query(required: .written)) { _, _ in left += 1 }
    #expect(left == 0)
  }

  @Test("protecting memory without WP_ASYNC is an error, not silence")
  func notRegistered() throws {
    let plain = try Mapping(count: page)
    unsafe fill(plain.range, with: 1)
    #expect(throws: PinError.self) { try PageMap().scan(plain.range, written) { _, _ in } }
  }

  @Test("entries tell present pages from absent ones; an empty range has none")
  func entries() throws {
    let plain = try Mapping(count: 4 * page)
    try Memory.advise(plain.range, .noHugePages)
    unsafe fill(AddressRange(start: plain.range.start + UInt(page), count: 1), with: 1)
    let map = try PageMap()
    #expect(try map.entries(plain.range).map { $0 >> 63 } == [0, 1, 0, 0])
    #expect(try map.entries(AddressRange(start: plain.range.start, count: 0)).isEmpty)
  }
}
