import Testing

@testable import PinKit

@Suite("Fault-around window") struct FaultAroundTests {
  private func expect(_ window: borrowing FaultAround, _ page: Int, _ expected: Int) {
    let opened = window.window(at: page)
    #expect(opened == expected)
  }

  @Test("exact opens the page alone, fixed opens so many") func policies() {
    let window = FaultAround()
    for page in 0..<10 { expect(window, page, 1) }
    let opensNone = !window.opensNeighbours
    #expect(opensNone)
    window.set(.fixed(16))
    let opensSome = window.opensNeighbours
    #expect(opensSome)
    for page in [0, 500, 3] { expect(window, page, 16) }
    window.set(.fixed(0))
    expect(window, 0, 1)
    window.set(.fixed(1 << 30))
    expect(window, 0, 32768)
    window.set(.exact)
    expect(window, 0, 1)
  }

  @Test("a writer in order gets twice as many pages each time, up to the maximum") func sequential() {
    let window = FaultAround()
    window.set(.adaptive(maximum: 64))
    var page = 100
    for expected in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
      let opened = window.window(at: page)
      #expect(opened == expected)
      let current = window.currentWindow
      #expect(current == expected)
      page += opened
    }
  }

  @Test("a random writer pays for no neighbours") func random() {
    let window = FaultAround()
    window.set(.adaptive(maximum: 64))
    var random = SeededRandom(seed: 5)
    var opened = 0
    for _ in 0..<10_000 { opened += window.window(at: Int.random(in: 0..<(1 << 30), using: &random)) }
    #expect(opened == 10_000)
  }

  @Test("several streams grow beside each other") func streams() {
    let window = FaultAround()
    window.set(.adaptive(maximum: 32))
    var next = (0..<6).map { $0 * 100_000 }
    for expected in [1, 2, 4, 8, 16, 32, 32] {
      for stream in next.indices {
        let opened = window.window(at: next[stream])
        #expect(opened == expected)
        next[stream] += opened
      }
    }
  }

  @Test("the first pages of a region are no stream by themselves") func firstPage() {
    let window = FaultAround()
    window.set(.adaptive(maximum: 64))
    expect(window, 0, 1)
    expect(window, 0, 1)
    expect(window, 1, 2)
  }

  @Test("a writer that turns back starts small again") func backwards() {
    let window = FaultAround()
    window.set(.adaptive(maximum: 64))
    for page in stride(from: 500, to: 400, by: -1) { expect(window, page, 1) }
  }
}
