internal import PinKit
internal import Terminal

/// A picture of which pages were dirty when: rows are bins of pages, columns are stretches of time.
struct TrackHeatMap {
  private static let rowCount = 18
  private static let margin = 10

  let stage: DemoStage
  let layout: TrackIndexLayout
  /// Pages of each line of text, and the name of the area that begins there.
  private let rows: [(pages: Range<Int>, name: String)]

  init(stage: DemoStage, layout: TrackIndexLayout) {
    self.stage = stage
    self.layout = layout
    let spare = Self.rowCount - layout.areas.count
    rows = layout.areas.flatMap { area -> [(Range<Int>, String)] in
      let share = Double(area.pages.count) / Double(layout.pageCount)
      let lines = min(area.pages.count, 1 + Int((share * Double(spare)).rounded()))
      return (0..<lines).map { line in
        let pages = Self.slice(area.pages, line, of: lines)
        return (pages, line == 0 ? area.name : "")
      }
    }
  }

  private static func slice(_ pages: Range<Int>, _ index: Int, of count: Int) -> Range<Int> {
    let start = pages.lowerBound
    return start + pages.count * index / count..<start + pages.count * (index + 1) / count
  }

  /// Of all that was recorded, the last rounds: three, or as many more as are needed to fill the lines.
  func excerpt(_ frames: [TrackSession.Frame]) -> ArraySlice<TrackSession.Frame> {
    let starts = frames.indices.filter { frames[$0].beginsRound }
    let start = starts.dropLast(2).last { frames.count - $0 >= columnLimit } ?? 0
    return frames[start...]
  }

  private var columnLimit: Int { stage.width - Self.margin - 2 }

  /// The lines of the picture.
  func lines(_ frames: ArraySlice<TrackSession.Frame>) -> [String] {
    guard !frames.isEmpty else { return [] }
    let columns = min(columnLimit, frames.count)
    let spans = (0..<columns).map { Self.slice(frames.indices, $0, of: columns) }
    let halves = stage.colours == .none ? 1 : 2
    let bins = rows.flatMap { row in (0..<halves).map { Self.slice(row.pages, $0, of: halves) } }
    let columnHeats = spans.map { span in heats(frames[span], bins) }
    var lines = rows.indices.map { row in
      let label = rows[row].name.padded(to: Self.margin)
      return label
        + DemoColours.line(
          columnHeats.map { heats in
            let (upper, lower) = (row * halves, row * halves + halves - 1)
            // Of a row of one page, the upper half is empty.
            return (heats[bins[upper].isEmpty ? lower : upper], heats[lower])
          }, stage.colours)
    }
    let marks = spans.map { span in frames[span].contains(where: \.beginsRound) ? "^" : " " }.joined()
    lines.append("".padded(to: Self.margin) + marks)
    return lines
  }

  /// For each bin, the part of it that was dirty, on average over the frames.
  private func heats(_ frames: ArraySlice<TrackSession.Frame>, _ bins: [Range<Int>]) -> [Double] {
    var dirty = [Int](repeating: 0, count: bins.count)
    for frame in frames {
      var bin = 0
      for run in frame.dirty.runs {
        while bin < bins.count, bins[bin].upperBound <= run.lowerBound { bin += 1 }
        var at = bin
        while at < bins.count, bins[at].lowerBound < run.upperBound {
          dirty[at] += run.clamped(to: bins[at]).count
          at += 1
        }
      }
    }
    return bins.indices.map { Double(dirty[$0]) / Double(max(1, bins[$0].count * frames.count)) }
  }

  /// How the heat is to be read.
  var legend: String {
    let scale = (0...16).map { (step: Int) -> (upper: Double, lower: Double) in
      let heat = Double(step * step) / 256
      return (heat, heat)
    }
    return "".padded(to: Self.margin) + "clean " + DemoColours.line(scale, stage.colours)
      + " all dirty    ^ a round begins: the index is discarded and built anew"
  }

  /// For each area, the part of it that is dirty in the median interval.
  func typicalShares(_ frames: [TrackSession.Frame]) -> [(name: String, share: Double)] {
    layout.areas.map { area in
      let shares = frames.map { frame in
        frame.dirty.runs.reduce(0) { $0 + $1.clamped(to: area.pages).count }
      }.sorted()
      return (area.name, Double(shares.isEmpty ? 0 : shares[shares.count / 2]) / Double(area.pages.count))
    }
  }
}

/// Heat as characters.
enum DemoColours {
  private static let ramp = Array(" .:-=+*#%@")
  private static let palette = [234, 53, 54, 90, 126, 161, 197, 203, 209, 215, 221, 229]
  /// From almost black by violet, red and orange to pale yellow.
  private static let stops: [(Double, Double, Double)] = [
    (24, 22, 34), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164),
  ]

  /// One line: pairs of heats between 0 and 1, of the upper and the lower half.
  static func line(_ cells: [(upper: Double, lower: Double)], _ colours: Screen.Colours) -> String {
    switch colours {
    case .none:
      return String(cells.map { $0.lower <= 0 ? ramp[0] : ramp[1 + min(8, Int(stretched($0.lower) * 9))] })
    case .palette256:
      return cells.map { "\u{1b}[38;5;\(code($0.upper));48;5;\(code($0.lower))m▀" }.joined() + "\u{1b}[0m"
    case .full:
      return cells.map { "\u{1b}[38;2;\(mix($0.upper));48;2;\(mix($0.lower))m▀" }.joined() + "\u{1b}[0m"
    }
  }

  /// Small shares are the interesting ones.
  private static func stretched(_ heat: Double) -> Double { min(1, max(0, heat)).squareRoot() }

  private static func code(_ heat: Double) -> Int {
    heat <= 0 ? palette[0] : palette[1 + min(palette.count - 2, Int(stretched(heat) * Double(palette.count - 1)))]
  }

  private static func mix(_ heat: Double) -> String {
    let at = stretched(heat) * Double(stops.count - 1)
    let low = min(stops.count - 2, Int(at))
    let part = at - Double(low)
    func channel(_ path: KeyPath<(Double, Double, Double), Double>) -> Int {
      Int(stops[low][keyPath: path] * (1 - part) + stops[low + 1][keyPath: path] * part)
    }
    return "\(channel(\.0));\(channel(\.1));\(channel(\.2))"
  }
}
