internal import Terminal

/// What became of a page at each step, side by side.
struct GupTimeline {
  var runs: [GupRun]

  private static let margin = 38
  private static let widths = [19, 9, 9]

  func lines(_ stage: DemoStage) -> [String] {
    let columns = ["taken for", "memory", "file"]
    var lines = ["", ""]
    lines[0] = "".padded(to: Self.margin)
    lines[1] = "".padded(to: Self.margin)
    for run in runs {
      lines[0] += stage.bold(run.name) + String(repeating: " ", count: max(1, Self.widths.reduce(0, +) - run.name.count))
      lines[1] += zip(columns, Self.widths).map { $0.padded(to: $1) }.joined()
    }
    for step in GupStep.allCases {
      let shown = runs.map { run in run.row(step).map { cells($0, stage) } ?? [] }
      guard shown.contains(where: { !$0.isEmpty }) else { continue }
      lines.append(step.title.padded(to: Self.margin) + shown.joined().joined())
    }
    return lines
  }

  private func cells(_ row: GupRun.Row, _ stage: DemoStage) -> [String] {
    let state = row.state.description
    let colour = row.state.isUnderWriteback ? 36 : row.state.isDirty ? 33 : 32
    // What only the memory has, and nobody takes for dirty, is lost.
    let isLost = row.memory != row.file && !row.state.isDirty && !row.state.isUnderWriteback
    let mark = isLost ? "!" : ""
    let file = (row.file.rawValue + mark).padded(to: Self.widths[2])
    return [
      stage.paint(state, colour) + String(repeating: " ", count: max(1, Self.widths[0] - state.count)),
      row.memory.rawValue.padded(to: Self.widths[1]), isLost ? stage.paint(file, 31) : file,
    ]
  }

  static let legend = "! the file lacks what the memory holds, and nobody takes the page for dirty."
}
