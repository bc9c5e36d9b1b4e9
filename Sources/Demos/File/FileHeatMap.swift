internal import PinKit
internal import Terminal

/// A picture of a region over a file: a row for each moment, a letter for each page.
struct FileHeatMap {
  enum Cell: String, CaseIterable, Hashable, Sendable {
    case absent = "·"
    case clean = "o"
    case dirty = "#"
    case writeback = "W"
    /// Written, and not known to be durable.
    case unflushed = "u"

    var name: String { "\(self)" }

    init(_ state: Region.FilePageState) {
      self =
        !state.isPresent
        ? .absent : state.isUnderWriteback ? .writeback : state.isDirty ? .dirty : state.isUnflushed ? .unflushed : .clean
    }

    var colour: Int {
      switch self {
      case .absent: 90
      case .clean: 32
      case .dirty: 33
      case .writeback: 36
      case .unflushed: 35
      }
    }
  }

  struct Row: Hashable, Sendable {
    var moment: String
    var cells: [Cell]

    init(_ moment: String, _ cells: [Cell]) {
      self.moment = moment
      self.cells = cells
    }

    /// What the region's pages are now.
    init(_ moment: String, _ region: Region) throws(PinError) {
      self.moment = moment
      cells = []
      for page in 0..<region.pageCount { cells.append(Cell(try region.filePageState(page))) }
    }

    func count(_ cell: Cell) -> Int { cells.count { $0 == cell } }
  }

  var rows: [Row]

  func lines(_ stage: DemoStage) -> [String] {
    let margin = 2 + (rows.map(\.moment.count).max() ?? 0)
    let columns = max(8, stage.width - margin - 4)
    var lines: [String] = []
    for row in rows {
      for start in stride(from: 0, to: row.cells.count, by: columns) {
        let part = row.cells[start..<min(row.cells.count, start + columns)]
        lines.append((start == 0 ? row.moment : "").padded(to: margin) + Self.line(part, stage))
      }
    }
    let legend = Cell.allCases.map { stage.paint($0.rawValue, $0.colour) + " \($0.name)" }.joined(separator: "   ")
    lines.append("".padded(to: margin) + legend)
    return lines
  }

  /// Runs of one colour, painted at once.
  private static func line(_ cells: ArraySlice<Cell>, _ stage: DemoStage) -> String {
    var line = ""
    var at = cells.startIndex
    while at < cells.endIndex {
      let end = cells[at...].firstIndex { $0 != cells[at] } ?? cells.endIndex
      line += stage.paint(String(repeating: cells[at].rawValue, count: end - at), cells[at].colour)
      at = end
    }
    return line
  }
}
