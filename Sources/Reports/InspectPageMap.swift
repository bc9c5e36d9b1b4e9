internal import PinKit
internal import Terminal

/// A map of pages: a character for one page, or for as many as it takes to fit.
struct InspectPageMap {
  let screen: Screen
  let pages: InspectReport.Pages

  private static let rowLimit = 24
  private static let margin = 13

  /// A cell shows the first of these that is true of any of its pages.
  private static let letters:
    [(letter: Character, colour: Int, name: String, holds: @Sendable (ObservedPages.State) -> Bool)] = [
      ("x", 35, "swapped", { $0.contains(.swapped) }),
      ("w", 36, "write-protected", { $0.contains(.writeProtected) }),
      ("b", 35, "being written back", { $0.contains(.writeback) }),
      ("D", 31, "dirty page of a file", { $0.contains([.dirty, .file]) }),
      ("H", 33, "huge", { $0.contains(.huge) }),
      ("z", 90, "zero page", { $0.contains(.zero) }),
      ("k", 34, "merged (KSM)", { $0.contains(.merged) }),
      ("S", 34, "mapped more than once", { $0.contains(.shared) }),
      ("a", 37, "anonymous", { $0.contains(.present) && !$0.contains(.file) }),
      ("f", 32, "page of a file", { $0.contains(.present) }),
    ]

  private var pageCount: Int { pages.range.count / pages.pageSize }
  /// A multiple of 8, so that the lines begin at round addresses.
  private var columns: Int { (screen.width - Self.margin) / 8 * 8 }
  private var pagesPerCell: Int {
    var count = 1
    while (pageCount + count - 1) / count > columns * Self.rowLimit { count *= 2 }
    return count
  }

  var lines: [String] {
    var cells = [Int](repeating: Self.letters.count, count: (pageCount + pagesPerCell - 1) / pagesPerCell)
    for run in pages.runs {
      let flags = run.flags
      guard let rank = Self.letters.firstIndex(where: { $0.holds(flags) }) else { continue }
      let first = Int(run.start - pages.range.start) / pages.pageSize
      for cell in first / pagesPerCell...(first + run.pages - 1) / pagesPerCell { cells[cell] = min(cells[cell], rank) }
    }
    let scale =
      pagesPerCell == 1
      ? "a character is a page"
      : "a character is \(pagesPerCell.grouped) pages (\((pagesPerCell * pages.pageSize).bytes)) and shows the first of the legend that any of them is"
    let picture = stride(from: 0, to: cells.count, by: columns).map { row in
      let address = pages.range.start + UInt(row * pagesPerCell * pages.pageSize)
      return String(address, radix: 16).padded(to: Self.margin) + draw(cells[row..<min(cells.count, row + columns)])
    }
    return ["\(counted(pageCount, "page")) of \(pages.pageSize.bytes); \(scale)"] + picture + [""] + legend(Set(cells))
      + totals
  }

  private func draw(_ cells: ArraySlice<Int>) -> String {
    var text = ""
    var at = cells.startIndex
    while at < cells.endIndex {
      let end = cells[at...].firstIndex { $0 != cells[at] } ?? cells.endIndex
      let isEmpty = cells[at] == Self.letters.count
      let letter = isEmpty ? "." : Self.letters[cells[at]].letter
      text += screen.paint(String(repeating: letter, count: end - at), isEmpty ? 90 : Self.letters[cells[at]].colour)
      at = end
    }
    return text
  }

  private func legend(_ used: Set<Int>) -> [String] {
    let shown = Self.letters.indices.filter(used.contains).map {
      "\(screen.paint(String(Self.letters[$0].letter), Self.letters[$0].colour)) \(Self.letters[$0].name)"
    }
    return [(shown + [". nothing there"]).joined(separator: "  ")]
  }

  /// Every property by itself: a picture shows one of a cell.
  private var totals: [String] {
    var counts: [String: Int] = [:]
    var mapped: [Int: Int] = [:]
    for run in pages.runs {
      for name in run.state { counts[name, default: 0] += run.pages }
      if let count = run.mapCount { mapped[count, default: 0] += run.pages }
    }
    let states = ObservedPages.State.names.compactMap { name in counts[name.1].map { "\($0.grouped) \(name.1)" } }
    let most = mapped.sorted { $0.key < $1.key }
    let shown =
      most.prefix(8).map { "\($0.key)× \($0.value.grouped)" } + (most.count > 8 ? ["up to \(most.last!.key)×"] : [])
    return ["pages: " + (states.isEmpty ? "none" : states.joined(separator: ", "))]
      + (shown.isEmpty ? [] : ["mapped: " + shown.joined(separator: ", ")])
  }
}
