import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("Page bitmap") struct PageBitmapTests {
  private func with(_ pageCount: Int, _ body: (PageBitmap) throws -> Void) throws {
    let memory = try Mapping(count: max(4096, PageBitmap.size(pageCount: pageCount) + 8))
    try body(PageBitmap(in: memory, pageCount: pageCount))
    _ = consume memory
  }

  private func drain(_ bitmap: PageBitmap) -> [Range<Int>] {
    var runs: [Range<Int>] = []
    bitmap.drain { runs.append($0) }
    return runs
  }

  /// Some runs, and what they are in all.
  private func fill(_ bitmap: PageBitmap, _ random: inout SeededRandom) -> Set<Int> {
    var model = Set<Int>()
    for _ in 0..<Int.random(in: 0...40, using: &random) {
      let start = Int.random(in: 0..<bitmap.pageCount, using: &random)
      let run = start..<min(bitmap.pageCount, start + Int.random(in: 1...200, using: &random))
      bitmap.insert(run)
      model.formUnion(run)
    }
    return model
  }

  @Test("drains in order, once, and merges runs across words") func order() throws {
    try with(100_000) { bitmap in
      for run in [99_999..<100_000, 60..<70, 0..<1, 64 * 64 - 3..<64 * 64 + 2, 128..<192, 192..<256, 300..<301] {
        bitmap.insert(run)
      }
      #expect(bitmap.contains(69) && !bitmap.contains(70))
      #expect(drain(bitmap) == [0..<1, 60..<70, 128..<256, 300..<301, 4093..<4098, 99_999..<100_000])
      #expect(drain(bitmap).isEmpty)
      #expect(!bitmap.contains(69))
      bitmap.insert(0..<100_000)
      #expect(drain(bitmap) == [0..<100_000])
    }
  }

  @Test("a part is drained exactly, and windows cover all that is set", arguments: [1, 64, 65, 4097, 300_000])
  func parts(_ pageCount: Int) throws {
    var random = SeededRandom(seed: UInt64(pageCount))
    try with(pageCount) { bitmap in
      for _ in 0..<20 {
        var model = fill(bitmap, &random)
        let bounds = [Int.random(in: 0...pageCount, using: &random), Int.random(in: 0...pageCount, using: &random)].sorted()
        let part = bounds[0]..<bounds[1]
        var (seen, taken): ([Range<Int>], [Range<Int>]) = ([], [])
        bitmap.forEachRun(in: part) { seen.append($0) }
        bitmap.drain(part) { taken.append($0) }
        #expect(Set(seen.joined()) == Set(taken.joined()))
        #expect(DirtySet(pageCount: pageCount, runs: taken).runs == taken)
        #expect(Set(taken.joined()) == model.filter { part ~= $0 })
        model.subtract(taken.joined())
        var start = 0
        var isLast = model.isEmpty
        while let window = bitmap.window(from: start, pages: 100, runs: 3) {
          #expect(!isLast && window.pages.lowerBound >= start)
          let found = model.filter { start..<window.pages.upperBound ~= $0 }
          #expect(found.min() == window.pages.lowerBound && found.max() == window.pages.upperBound - 1)
          let runs = DirtySet(pageCount: pageCount, runs: found.map { $0..<$0 + 1 }).runs.count
          // A word has 32 runs at most.
          #expect(found.count < 164 && runs < 35)
          start = window.pages.upperBound
          isLast = window.isLast
          if !isLast { #expect(found.count >= 100 || runs >= 3) }
        }
        #expect(isLast && model.allSatisfy { $0 < start })
        #expect(Set(drain(bitmap).joined()) == model)
      }
    }
  }

  @Test("inserts nothing for an empty range, and the same page twice only once") func degenerate() throws {
    try with(1) { bitmap in
      bitmap.insert(0..<0)
      #expect(drain(bitmap).isEmpty)
      bitmap.insert(0..<1)
      bitmap.insert(0..<1)
      #expect(drain(bitmap) == [0..<1])
    }
  }

  @Test("agrees with a set of integers", arguments: [1, 63, 64, 65, 4096, 4097, 300_000])
  func agreesWithASet(_ pageCount: Int) throws {
    var random = SeededRandom(seed: UInt64(pageCount))
    try with(pageCount) { bitmap in
      for _ in 0..<20 {
        let model = fill(bitmap, &random)
        let runs = drain(bitmap)
        #expect(DirtySet(pageCount: pageCount, runs: runs).runs == runs)
        #expect(Set(runs.joined()) == model)
      }
    }
  }

  @Test("a terabyte's bitmap costs what is set in it") func sparse() throws {
    let pageCount = 1 << 28
    let memory = try Mapping(count: PageBitmap.size(pageCount: pageCount) + 8)
    let bitmap = PageBitmap(in: memory, pageCount: pageCount)
    let pages = [0, 12_345_678, 200_000_001, pageCount - 1]
    for page in pages { bitmap.insert(page..<page + 1) }
    #expect(drain(bitmap) == pages.map { $0..<$0 + 1 })
    var resident = 0
    let map = try PageMap()
    try map.scan(memory.range, PageMap.Query(required: .present)) { range, _ in resident += range.count }
    #expect(resident <= 24 * 4096)
    _ = consume memory
  }

  @Test("what several threads insert at once is all there") func threads() throws {
    let pageCount = 64 * 64 * 4
    let memory = try Mapping(count: PageBitmap.size(pageCount: pageCount) + 8)
    let bitmap = PageBitmap(in: memory, pageCount: pageCount)
    for _ in 0..<20 {
      try onThreads(4) { thread in
        for page in stride(from: thread, to: pageCount, by: 4) { bitmap.insert(page..<page + 1) }
      }
      #expect(drain(bitmap) == [0..<pageCount])
    }
    _ = consume memory
  }
}

extension PageBitmap {
  /// With its top in the last word of `memory`.
  init(in memory: borrowing Mapping, pageCount: Int) {
    let top = unsafe UnsafeMutableRawPointer(bitPattern: memory.range.end - 8)!
    unsafe self.init(
      memory: UnsafeMutableRawPointer(bitPattern: memory.range.start)!,
      top: top.assumingMemoryBound(to: Atomic<UInt64>.self), pageCount: pageCount)
  }
}
