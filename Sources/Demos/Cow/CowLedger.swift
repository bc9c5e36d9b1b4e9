internal import PinKit
internal import Terminal

/// How frames are counted, step by step: a picture in letters.
struct CowLedger {
  /// Who has a frame after a step, by a mapping, a pin or a lookup.
  struct Row: Hashable {
    var state: FrameState
    var holders: [String]
  }
  struct Step {
    var what: String
    var rows: [Row]
  }
  private(set) var steps: [Step] = []

  /// Notes what is there after `what` has happened.
  mutating func note(_ what: String, _ holders: [(name: String, state: FrameState)]) {
    var rows: [Row] = []
    for (name, state) in holders {
      if let known = rows.firstIndex(where: { $0.state.frame == state.frame }) {
        rows[known].holders.append(name)
      } else {
        rows.append(Row(state: state, holders: [name]))
      }
    }
    steps.append(Step(what: what, rows: rows))
  }

  /// The picture: a line for each frame after each step; what a step changed is bold.
  func lines(_ stage: DemoStage) -> [String] {
    let label = 2 + (steps.map(\.what.count).max() ?? 0)
    var lines = [
      "".padded(to: label + 2)
        + Self.columns.map { $0.title.aligned(to: $0.title.count + 2) }.joined() + "   held by"
    ]
    var known: [Frame: [String]] = [:]
    for (number, step) in steps.enumerated() {
      for (line, row) in step.rows.enumerated() {
        let cells = Self.columns.map { $0.value(row.state) }
        let before = known.updateValue(cells, forKey: row.state.frame)
        let text = zip(Self.columns, cells).enumerated().map { index, cell in
          let aligned = cell.1.aligned(to: cell.0.title.count + 2)
          return before?[index] == cell.1 ? aligned : stage.bold(aligned)
        }
        let what = line == 0 ? "\(number + 1) \(step.what)" : ""
        lines.append(
          "  " + what.padded(to: label) + text.joined() + "   " + row.holders.joined(separator: " ─ "))
      }
    }
    return lines
  }

  /// How the picture is to be read.
  static let legend =
    "refs counts all references: 1 for each mapping and each lookup, \(FrameCounts.pinBias.grouped) for each pin."

  private static let columns: [(title: String, value: @Sendable (FrameState) -> String)] = [
    ("frame", { "\($0.frame.number)" }),
    ("refs", { $0.counts.references.grouped }),
    ("mappings", { "\($0.counts.mappings)" }),
    ("pins", { "\($0.counts.pins)" }),
    ("lookups", { "\($0.counts.lookups)" }),
    ("exclusive", { $0.counts.isExclusive ? "yes" : "no" }),
  ]
}

extension FrameCounts {
  var pins: Int { (references - mappings) / Self.pinBias }
  var lookups: Int { (references - mappings) % Self.pinBias }
}
