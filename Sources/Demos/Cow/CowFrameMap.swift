internal import PinKit
internal import Terminal

/// A picture of which frames are shared by how many regions: a row for each region, columns are stretches of pages.
struct CowFrameMap {
  private static let margin = 10
  private static let rowLimit = 33
  /// By region and page.
  let sharers: [[Int]]
  let distinctFrames: Int
  /// How many frames are had by 1, 2, … regions.
  let frameCounts: [Int]

  /// The template is the first of `regions`.
  init(_ regions: [Region]) throws {
    let frames = try regions.map { region in try (0..<region.pageCount).map { try region.frameState($0).frame } }
    self.init(frames: frames)
  }

  init(frames: [[Frame]]) {
    var counts: [Frame: Int] = [:]
    for frame in frames.joined() { counts[frame, default: 0] += 1 }
    sharers = frames.map { $0.map { counts[$0] ?? 0 } }
    distinctFrames = counts.count
    var sizes = [Int](repeating: 0, count: frames.count + 1)
    for count in counts.values { sizes[count] += 1 }
    frameCounts = Array(sizes.dropFirst())
  }

  func picture(_ stage: DemoStage) -> [String] {
    let width = min(stage.width - Self.margin - 2, sharers.first?.count ?? 0)
    let shown = min(sharers.count, Self.rowLimit)
    let rows = (0..<shown).map { heats(sharers[sharers.count * $0 / shown], columns: width) }
    let halves = stage.colours == .none ? 1 : 2
    var lines: [String] = []
    for start in stride(from: 0, to: rows.count, by: halves) {
      let (upper, lower) = (rows[start], rows[min(start + halves - 1, rows.count - 1)])
      let label = start == 0 ? "template" : start <= halves ? "clones" : ""
      lines.append(
        label.padded(to: Self.margin) + DemoColours.line(Array(zip(upper, lower)).map { ($0, $1) }, stage.colours))
    }
    let scale = (0...16).map { step -> (upper: Double, lower: Double) in
      let heat = Double(step) / 16
      return (heat * heat, heat * heat)
    }
    lines.append(
      "".padded(to: Self.margin) + "own " + DemoColours.line(scale, stage.colours)
        + " shared by all \(sharers.count). Left to right: pages; a row is a region."
        + (shown < sharers.count ? " \(shown) of them are shown." : ""))
    return lines
  }

  /// For each column the part of the other regions that share the column's frames, on average.
  private func heats(_ row: [Int], columns: Int) -> [Double] {
    (0..<columns).map { column in
      let pages = row[row.count * column / columns..<row.count * (column + 1) / columns]
      let others = pages.reduce(0) { $0 + $1 - 1 }
      return Double(others) / Double(max(1, pages.count * (sharers.count - 1)))
    }
  }

  /// How many frames are shared by how many, as bars.
  func histogram(_ stage: DemoStage) -> [String] {
    let groups = Self.groups(of: frameCounts.count)
    let sums = groups.map { group in frameCounts[group.lowerBound - 1..<group.upperBound - 1].reduce(0, +) }
    let most = max(1, sums.max() ?? 1)
    return zip(groups, sums).filter { $0.1 > 0 }.map { group, sum in
      let name =
        group.count == 1 ? "had by \(group.lowerBound)" : "had by \(group.lowerBound) to \(group.upperBound - 1)"
      let bar = String(repeating: "█", count: max(1, sum * (stage.width - 40) / most))
      return name.padded(to: 16) + sum.grouped.aligned(to: 7) + " frames  " + bar
    }
  }

  /// 1, a few stretches, and all.
  private static func groups(of count: Int) -> [Range<Int>] {
    guard count > 4 else { return (1...max(1, count)).map { $0..<$0 + 1 } }
    let middle = (2 + count) / 2
    return [1..<2, 2..<middle, middle..<count - 1, count - 1..<count, count..<count + 1].filter { !$0.isEmpty }
  }
}
