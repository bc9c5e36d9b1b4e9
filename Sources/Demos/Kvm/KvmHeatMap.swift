internal import PinKit
internal import Terminal

/// A picture of which pages the guest dirtied when: rows are stretches of pages, columns are rounds.
struct KvmHeatMap {
  private static let rowCount = 14
  private static let margin = 12

  let stage: DemoStage
  let sets: [DirtySet]

  var lines: [String] {
    guard let pageCount = sets.first?.pageCount else { return [] }
    let columns = min(stage.width - Self.margin - 2, sets.count)
    let halves = stage.colours == .none ? 1 : 2
    let bins = (0..<Self.rowCount * halves).map { Self.slice(pageCount, $0, of: Self.rowCount * halves) }
    let heats = (0..<columns).map { column in
      let rounds = Self.slice(sets.count, column, of: columns)
      return bins.map { Self.heat(sets[rounds], $0) }
    }
    var lines = (0..<Self.rowCount).map { row in
      let (upper, lower) = (row * halves, row * halves + halves - 1)
      let label = row % 4 == 0 ? "page \(bins[upper].lowerBound.grouped)" : ""
      return label.padded(to: Self.margin)
        + DemoColours.line(heats.map { ($0[upper], $0[lower]) }, stage.colours)
    }
    let scale = (0...16).map { (step: Int) -> (upper: Double, lower: Double) in
      let heat = Double(step * step) / 256
      return (heat, heat)
    }
    lines.append(
      "".padded(to: Self.margin) + "clean " + DemoColours.line(scale, stage.colours)
        + " all dirty    from left to right: \(sets.count.grouped) rounds")
    return lines
  }

  private static func slice(_ count: Int, _ index: Int, of parts: Int) -> Range<Int> {
    count * index / parts..<count * (index + 1) / parts
  }

  /// The part of `pages` that was dirty, on average.
  private static func heat(_ sets: ArraySlice<DirtySet>, _ pages: Range<Int>) -> Double {
    let dirty = sets.reduce(0) { sum, set in sum + set.runs.reduce(0) { $0 + $1.clamped(to: pages).count } }
    return Double(dirty) / Double(max(1, pages.count * sets.count))
  }
}
