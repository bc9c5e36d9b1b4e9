internal import PinKit
package import Terminal

/// The memory of a process as text: one line for each mapping, or a map of pages.
package struct InspectPicture {
  private let screen: Screen
  private let report: InspectReport

  package init(screen: Screen, report: InspectReport) {
    self.screen = screen
    self.report = report
  }

  package var lines: [String] {
    [screen.bold("\(printable(report.name)), process \(report.pid)")]
      + (report.pages.map { InspectPageMap(screen: screen, pages: $0).lines } ?? overview)
      + (report.pages == nil ? [] : [""] + report.mappings.flatMap(describe))
      + report.notSeen.map { "Not seen: \($0)." }
  }

  // MARK: Overview

  private static let barWidth = 10
  private static let parts: [(letter: Character, colour: Int, name: String)] = [
    ("x", 35, "swapped"), ("H", 33, "huge"), ("D", 31, "dirty"), ("c", 32, "clean"), (".", 90, "not there"),
  ]

  /// Of a narrow picture, those that say most.
  private var columns: [(name: String, amount: @Sendable (MappingDetails) -> Int)] {
    let all: [(String, @Sendable (MappingDetails) -> Int)] = [
      ("there", { $0.present }), ("dirty", { $0.dirty }), ("swap", { $0.swapped }), ("shared", { $0.shared }),
      ("huge", { $0.huge }),
    ]
    return screen.width < 90 ? Array(all.prefix(3)) : all
  }

  private var overview: [String] {
    let header =
      "address".padded(to: 13) + "rights".padded(to: 7) + "size".aligned(to: 6) + " " + "memory".padded(to: Self.barWidth)
      + columns.map { $0.name.aligned(to: 7) }.joined() + "  file (others who map it)"
    let all = report.mappings.map(\.details)
    let sums = columns.map { column in all.reduce(0) { $0 + column.amount($1) }.bytes.aligned(to: 7) }.joined()
    let size = all.reduce(0) { $0 + $1.mapping.range.count }.bytes
    let legend = Self.parts.map { "\(screen.paint(String($0.letter), $0.colour)) \($0.name)" }.joined(separator: "  ")
    return [header.cut(to: screen.width)] + report.mappings.map(line)
      + [
        counted(report.mappings.count, "mapping").padded(to: 20) + size.aligned(to: 6) + "".padded(to: Self.barWidth + 1)
          + sums
      ]
      + ["", "memory: " + legend, "rights: s shared, p private, U registered for uffd-wp"]
  }

  private func line(_ entry: InspectReport.Entry) -> String {
    let details = entry.details
    let start =
      String(details.mapping.range.start, radix: 16).padded(to: 13) + rights(details).padded(to: 7)
      + details.mapping.range.count.bytes.aligned(to: 6) + " "
    let amounts = columns.map { $0.amount(details) }
    let end = amounts.map { ($0 == 0 ? "-" : $0.bytes).aligned(to: 7) }.joined()
    let others = entry.holders.isEmpty ? "" : " (\(entry.holders.count))"
    let room = screen.width - start.count - Self.barWidth - end.count - 2 - others.count
    let name = printable(details.mapping.path)
    let shown = name.count <= room ? name : room < 2 ? "" : "…" + name.suffix(room - 1)
    return start + bar(details) + end + (room < 0 ? "" : "  " + shown + others)
  }

  private func rights(_ details: MappingDetails) -> String {
    let mapping = details.mapping
    return (mapping.isReadable ? "r" : "-") + (mapping.isWritable ? "w" : "-") + (mapping.isExecutable ? "x" : "-")
      + (mapping.isShared ? "s" : "p") + (details.isWriteProtectable ? "U" : "")
  }

  /// Shares of the mapping's size; what there is at all gets a character.
  private func bar(_ details: MappingDetails) -> String {
    let size = max(1, details.mapping.range.count)
    let huge = min(details.present, details.huge)
    let dirty = min(details.present - huge, max(0, details.dirty - huge))
    let amounts = [details.swapped, huge, dirty, details.present - huge - dirty]
    var left = Self.barWidth
    var text = ""
    for (amount, part) in zip(amounts, Self.parts) where amount > 0 && left > 0 {
      let share = Int((Double(amount) / Double(size) * Double(Self.barWidth)).rounded())
      let count = min(left, max(1, share))
      text += screen.paint(String(repeating: part.letter, count: count), part.colour)
      left -= count
    }
    return text + (left > 0 ? screen.paint(String(repeating: ".", count: left), 90) : "")
  }

  // MARK: Beside a map of pages

  private func describe(_ entry: InspectReport.Entry) -> [String] {
    let range = entry.details.mapping.range
    let place = "\(String(range.start, radix: 16))-\(String(range.end, radix: 16))"
    let path = entry.details.mapping.path
    let name = path.isEmpty ? "anonymous" : printable(path)
    let others = entry.holders.prefix(12).map(String.init).joined(separator: ", ") + (entry.holders.count > 12 ? ", …" : "")
    return ["\(place) \(rights(entry.details)) \(name)"]
      + (entry.holders.isEmpty
        ? [] : ["  also mapped by \(counted(entry.holders.count, "other process", "other processes")): \(others)"])
  }

  /// Names come from other people's programs: no control characters reach the terminal.
  private func printable(_ text: String) -> String {
    String(String.UnicodeScalarView(text.unicodeScalars.map { $0.properties.generalCategory == .control ? "?" : $0 }))
  }
}

extension MappingDetails {
  /// In bytes, hugetlb pages too.
  var present: Int { resident + hugetlb }
  var huge: Int { transparentHuge + hugetlb }
}
