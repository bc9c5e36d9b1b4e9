import Testing

@testable import PinKit

@Suite("How many pages a write takes along") struct WriteDensityTests {
  /// What a writer of each page of `order` opens who finds everything protected: faults, and pages.
  private func run(_ density: borrowing WriteDensity, _ order: some Sequence<Int>, pages: Int) -> (faults: Int, opened: Int)
  {
    var open = [Bool](repeating: false, count: pages)
    var (faults, opened) = (0, 0)
    for page in order where !open[page] {
      faults += 1
      let window = density.window(at: page)
      let start = page & ~(window - 1)
      for other in start..<min(start + window, pages) where !open[other] {
        open[other] = true
        opened += 1
      }
    }
    return (faults, opened)
  }

  private func shuffled(_ pages: Int, _ seed: UInt64) -> [Int] {
    var source = Seeded(state: seed)
    return (0..<pages).shuffled(using: &source)
  }

  @Test("Who writes one page in a hundred opens hardly more", arguments: [1, 2, 3] as [UInt64])
  func sparse(seed: UInt64) {
    let pages = 262_144
    let density = WriteDensity(pageCount: pages)
    let (faults, opened) = run(density, shuffled(pages, seed).prefix(pages / 100), pages: pages)
    #expect(Double(opened) < 1.25 * Double(faults), "\(opened) pages for \(faults) faults")
  }

  @Test(
    "Who writes every page faults a dozen times a block, in whichever order", arguments: [1024, 65_536, 65_536 + 512 * 3])
  func dense(pages: Int) {
    let random = WriteDensity(pageCount: pages)
    let (faults, opened) = run(random, shuffled(pages, 7), pages: pages)
    #expect(opened == pages)
    #expect(faults <= 13 * pages / 512, "\(faults) faults at random")
    let inOrder = WriteDensity(pageCount: pages)
    #expect(run(inOrder, 0..<pages, pages: pages).faults <= 20 * pages / 512)
  }

  @Test(
    "A block that is written by itself gets there as well, and one beside many that are written begins with single pages")
  func alone() {
    let density = WriteDensity(pageCount: 65_536)
    for page in 0..<14 { _ = density.window(at: page * 32) }
    #expect(density.window(at: 1) == 128)
    #expect(density.window(at: 40_000) == 1)
    for block in 0..<40 { for page in 0..<14 { _ = density.window(at: block * 512 + page) } }
    #expect((0..<3).allSatisfy { density.window(at: 60 * 512 + $0) == 1 })
    #expect(density.window(at: 60 * 512 + 3) == 128)
    #expect(density.window(at: 64 * 512) == 1)
    // Another group.
    #expect((0..<5).allSatisfy { density.window(at: 70 * 512 + $0) == 1 })
  }

  @Test("A new snapshot begins anew")
  func reset() {
    let density = WriteDensity(pageCount: 65_536)
    for page in 0..<32_768 { _ = density.window(at: page) }
    density.reset()
    #expect((0..<8).allSatisfy { density.window(at: $0) == 1 })
  }

  private struct Seeded: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return (state ^ state >> 33) &* 0xff51_afd7_ed55_8ccd
    }
  }
}
