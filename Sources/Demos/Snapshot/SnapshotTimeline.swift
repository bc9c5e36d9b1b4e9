internal import Foundation
internal import Terminal

/// What the writers did while checkpoints were taken, over time: two methods side by side, on the same scales.
struct SnapshotTimeline {
  /// A method's stretch of time.
  struct Panel: Sendable {
    var title: String
    var checkpoints: [Checkpoint]
  }

  private static let height = 6
  private static let eighths = Array(" ▁▂▃▄▅▆▇█")
  /// In nanoseconds, before the first call and after the last file.
  fileprivate static let margin: UInt64 = 150_000_000
  private static let axisWidth = 8
  private static let gap = 3

  private let load: LedgerLoad
  private let panels: [Panel]
  private let width: Int
  /// In milliseconds: what a column stands for.
  private let columnTime: Int

  /// - Parameter width: Of all, in characters.
  init(_ load: LedgerLoad, _ panels: [Panel], width: Int) {
    self.load = load
    self.panels = panels
    self.width = max(10, (width - Self.axisWidth - Self.gap * (panels.count - 1)) / panels.count)
    let longest = panels.map { Int(($0.end - $0.begin) / 1_000_000) }.max() ?? 1
    columnTime = max(1, (longest + self.width - 1) / self.width)
  }

  var lines: [String] {
    let columns = panels.map(columns)
    let rates = columns.map { $0.map { Double($0.count) / Double(columnTime) } }
    let highest = max(1e-9, rates.joined().max() ?? 0)
    var lines = [row("", panels.map(\.title))]
    for level in (0..<Self.height).reversed() {
      let label = level == Self.height - 1 ? "\(Self.thousands(highest))/s" : level == 0 ? "writes" : ""
      lines.append(row(label, rates.map { $0.map { Self.cell($0 / highest, level) }.joined() }))
    }
    let most = max(1e-9, columns.joined().map(\.slowed).max() ?? 0)
    lines.append(row("slowed", columns.map { $0.map { Self.cell($0.slowed / most, 0, of: 1) }.joined() }))
    lines.append(row("", panels.map(marks)))
    return lines
  }

  var legend: String {
    "From left to right \(columnTime) ms a column; ▲ snapshot taken, ■ image complete and on the disk. Above are the "
      + "writers' transfers, below is the part of their time that went into slow ones, of 1 µs to 1 ms: what a "
      + "write takes that waits for the copy of a page."
  }

  private func row(_ label: String, _ parts: [String]) -> String {
    let text =
      label.padded(to: Self.axisWidth)
      + parts.map { $0.padded(to: width) }.joined(separator: String(repeating: " ", count: Self.gap))
    return String(text.reversed().drop { $0 == " " }.reversed())
  }

  private func columns(_ panel: Panel) -> [(count: Int, slowed: Double)] {
    let first = Int((panel.begin - min(panel.begin, load.epoch)) / 1_000_000)
    return (0..<width).map { column in
      let slices = first + column * columnTime..<first + (column + 1) * columnTime
      return load.writers.reduce((0, 0)) { sum, writer in
        let inside = slices.clamped(to: writer.counts.indices)
        return (
          sum.0 + inside.reduce(0) { $0 + Int(writer.counts[$1]) },
          sum.1 + inside.reduce(0) { $0 + Double(writer.slowed[$1]) }
        )
      }
    }
  }

  private func marks(_ panel: Panel) -> String {
    var line = [Character](repeating: " ", count: width)
    for checkpoint in panel.checkpoints {
      let taken = column(of: checkpoint.called, panel)
      line[taken] = "▲"
      line[min(width - 1, max(taken + 1, column(of: checkpoint.complete, panel)))] = "■"
    }
    return String(line)
  }

  private func column(of time: UInt64, _ panel: Panel) -> Int {
    min(width - 1, Int((time - panel.begin) / 1_000_000) / columnTime)
  }

  /// One character of a bar that is `share` high, in one of its rows.
  private static func cell(_ share: Double, _ level: Int, of height: Int = height) -> String {
    let filled = Int((share * Double(height * 8)).rounded()) - level * 8
    return String(eighths[min(8, max(0, filled))])
  }

  /// Of transfers a millisecond.
  private static func thousands(_ rate: Double) -> String {
    rate < 1000 ? "\(rate.rounded(to: 0))k" : "\((rate / 1000).rounded(to: 1))M"
  }
}

extension SnapshotTimeline.Panel {
  fileprivate var begin: UInt64 {
    let called = checkpoints.first?.called ?? 0
    return called - min(called, SnapshotTimeline.margin)
  }
  fileprivate var end: UInt64 { (checkpoints.last?.complete ?? begin) + SnapshotTimeline.margin }
}
