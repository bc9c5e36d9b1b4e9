internal import Dispatch
internal import PinKit
internal import Terminal

/// The template, its clones, and what was counted on the way.
final class CowCloneFarm {
  let pageCount = 1536
  let pool: FramePool
  private(set) var regions: [Region]
  private(set) var residentBefore = 0
  private(set) var residentAfterClones = 0
  private(set) var residentAfterWrites = 0
  private(set) var copiesByCloning = 0
  private(set) var cloneNanoseconds = 0.0
  /// By region and page, what was written there after cloning.
  private var written: [[Int: UInt64]]
  private let space: AddressSpace
  private let cloneCount: Int
  private let salt = UInt64.random(in: 1 << 40...1 << 60)

  init(space: AddressSpace, cloneCount: Int) throws {
    self.space = space
    self.cloneCount = cloneCount
    pool = try space.framePool()
    regions = [try space.map(.pool, pages: pageCount)]
    written = Array(repeating: [:], count: cloneCount + 1)
  }

  func fill() throws {
    for page in 0..<pageCount { try store(salt + UInt64(page), page, of: 0) }
    residentBefore = pool.usage.residentBytes
  }

  func makeClones() throws {
    let copies = space.statistics.copies
    let begun = DispatchTime.now().uptimeNanoseconds
    for _ in 0..<cloneCount { regions.append(try regions[0].clone()) }
    cloneNanoseconds = Double(DispatchTime.now().uptimeNanoseconds - begun) / Double(cloneCount)
    residentAfterClones = pool.usage.residentBytes
    copiesByCloning = Int(space.statistics.copies - copies)
  }

  /// Each clone writes a run of pages that moves on from clone to clone, and some pages of a part that all write; the template writes
  /// a few. Returns how many pages were written.
  func writePages() throws -> Int {
    let count = regions.count
    for (number, _) in regions.enumerated() {
      let runStart = number * (pageCount - 32) / count
      for page in runStart..<runStart + (number == 0 ? 8 : 20) { try write(page, of: number) }
      for _ in 0..<(number == 0 ? 4 : 12) {
        let place = Double.random(in: 0..<1)
        try write(Int(place * place * Double(pageCount / 4)) + pageCount / 2, of: number)
      }
    }
    residentAfterWrites = pool.usage.residentBytes
    return written.map(\.count).reduce(0, +)
  }

  /// Reads every page of every region; returns how many do not hold what they should. Each is mapped then.
  func wrongPages() throws -> Int {
    var wrong = 0
    for (number, region) in regions.enumerated() {
      for page in 0..<pageCount {
        let value: UInt64 = try region.load(fromByteOffset: page * region.pageSize)
        if value != written[number][page] ?? salt + UInt64(page) { wrong += 1 }
      }
    }
    return wrong
  }

  /// Every other one first, the template among them, then the rest.
  func unmapAll() throws {
    for parity in [0, 1] {
      for (number, region) in regions.enumerated() where number % 2 == parity { try region.unmap() }
    }
  }

  var copies: Int { Int(space.statistics.copies) }

  /// How many mappings of the kernel's a clone is made of, on average.
  var mappingsPerClone: Double {
    let counts = regions.dropFirst().map { (try? ProcessMaps.mappings(in: $0.addresses).count) ?? 0 }
    return Double(counts.reduce(0, +)) / Double(max(1, counts.count))
  }

  private func write(_ page: Int, of number: Int) throws {
    let value = UInt64.random(in: .min ... .max)
    try store(value, page, of: number)
    written[number][page] = value
  }

  private func store(_ value: UInt64, _ page: Int, of number: Int) throws {
    try regions[number].store(value, toByteOffset: page * regions[number].pageSize)
  }

  func lines(written: Int, map: CowFrameMap) -> [String] {
    let full = residentBefore * (cloneCount + 1)
    return [
      "the template".padded(to: 34) + mebibytes(residentBefore),
      "with \(counted(cloneCount, "clone"))".padded(to: 34) + mebibytes(residentAfterClones)
        + "   \((cloneNanoseconds / 1e3).rounded(to: 0)) µs a clone",
      "after \(written.grouped) pages were written".padded(to: 34) + mebibytes(residentAfterWrites)
        + "   \(copies.grouped) pages copied, \(mappingsPerClone.rounded(to: 1)) mappings of the kernel's a clone",
      "as full copies it would be".padded(to: 34) + mebibytes(full),
    ]
  }

  private func mebibytes(_ bytes: Int) -> String { "\((Double(bytes) / 1_048_576).rounded(to: 1)) MiB".aligned(to: 10) }
}
