import Foundation

extension BenchReport {
  /// The report as an SVG bar chart: a panel for each unit, PinKit above its floor, and the goal as a tick.
  ///
  /// The axes are logarithmic, for rows span five orders of magnitude; each panel has the decades it needs.
  public func plot() -> String {
    var units: [String] = []
    for entry in entries where !units.contains(entry.result.unit) { units.append(entry.result.unit) }
    var body = ""
    var y = 58.0
    for unit in units {
      let rows = entries.filter { $0.result.unit == unit }
      body += panel(rows, unit: unit, y: &y)
    }
    return """
      <svg xmlns="http://www.w3.org/2000/svg" width="\(whole(Chart.width))" height="\(whole(y))" \
      viewBox="0 0 \(whole(Chart.width)) \(whole(y))" font-family="system-ui, sans-serif" font-size="12">
      <rect width="100%" height="100%" fill="#ffffff"/>
      \(text("PinKit beside the raw kernel", x: 16, y: 26, style: "font-size=\"16\" font-weight=\"600\" fill=\"#1f2937\""))
      \(legend())
      \(body)</svg>

      """
  }

  private func legend() -> String {
    let x = Chart.left
    return bar(x: x, y: 37, width: 14, color: Chart.pinkit) + text("PinKit", x: x + 20, y: 46)
      + bar(x: x + 80, y: 37, width: 14, color: Chart.floor) + text("floor", x: x + 100, y: 46)
      + line(x1: x + 160, x2: x + 160, y1: 34, y2: 49, color: Chart.goal, width: 2) + text("goal", x: x + 168, y: 46)
  }

  private func panel(_ rows: [(goal: BenchGoal, result: BenchResult)], unit: String, y: inout Double) -> String {
    let axis = LogAxis(
      rows.flatMap { goal, result in [result.pinkit, result.floor, goal.limit(floor: result.floor)].compactMap(\.self) })
    let top = y + 26
    let bottom = top + Chart.row * Double(rows.count)
    var out = text(unit, x: 16, y: y + 18, style: "font-weight=\"600\" fill=\"#1f2937\"")
    for decade in axis.first...axis.last {
      let x = axis.x(pow(10, Double(decade)))
      out += line(x1: x, x2: x, y1: top - 4, y2: bottom, color: "#e5e7eb", width: 1)
      out += text(axis.label(decade), x: x, y: top - 8, style: "text-anchor=\"middle\" fill=\"#6b7280\"")
    }
    for (index, entry) in rows.enumerated() {
      let result = entry.result
      let at = top + Chart.row * Double(index)
      let missed = result.meets(entry.goal) ? "#374151" : Chart.missed
      out += text(result.name, x: Chart.left - 10, y: at + 20, style: "text-anchor=\"end\" fill=\"\(missed)\"")
      out += bar(x: Chart.left, y: at + 5, width: axis.x(result.pinkit) - Chart.left, color: Chart.pinkit)
      out += bar(x: Chart.left, y: at + 17, width: axis.x(result.floor) - Chart.left, color: Chart.floor)
      if let limit = entry.goal.limit(floor: result.floor) {
        let goal = axis.x(limit)
        out += line(x1: goal, x2: goal, y1: at + 2, y2: at + 16, color: Chart.goal, width: 2)
      }
      let ratio = "\(figure(result.pinkit)) / \(figure(result.floor)) = \(figure(result.ratio))×"
      out += text(ratio, x: Chart.right + 10, y: at + 20, style: "fill=\"\(missed)\"")
    }
    y = bottom + 24
    return out
  }
}

extension BenchGoal {
  fileprivate func limit(floor: Double) -> Double? {
    switch self {
    case .ratio(let limit): limit * floor
    case .value(let limit): limit
    case .added(let limit): floor + limit
    case .reported: nil
    }
  }
}

private enum Chart {
  static let width = 920.0
  static let left = 220.0
  static let right = 730.0
  static let row = 32.0
  static let pinkit = "#2563eb"
  static let floor = "#9ca3af"
  static let goal = "#111827"
  static let missed = "#b91c1c"
}

/// Decades from the left edge to the right one.
private struct LogAxis {
  let first: Int
  let last: Int

  init(_ values: [Double]) {
    let positive = values.filter { $0 > 0 }
    // The smallest value gets a bar too: the axis starts below it.
    first = Int((log10((positive.min() ?? 1) * 0.9)).rounded(.down))
    last = max(first + 1, Int((log10((positive.max() ?? 10) * 0.999)).rounded(.up)))
  }

  func x(_ value: Double) -> Double {
    guard value > 0 else { return Chart.left }
    let share = (log10(value) - Double(first)) / Double(last - first)
    return Chart.left + (Chart.right - Chart.left) * min(1, max(0, share))
  }

  func label(_ decade: Int) -> String {
    decade >= 0 ? whole(pow(10, Double(decade))) : String(format: "%.\(-decade)f", pow(10, Double(decade)))
  }
}

private func whole(_ value: Double) -> String { String(format: "%.0f", value) }

private func tenths(_ value: Double) -> String { String(format: "%.1f", value) }

private func bar(x: Double, y: Double, width: Double, color: String) -> String {
  "<rect x=\"\(tenths(x))\" y=\"\(tenths(y))\" width=\"\(tenths(max(0, width)))\" height=\"10\" rx=\"1.5\" fill=\"\(color)\"/>\n"
}

private func line(x1: Double, x2: Double, y1: Double, y2: Double, color: String, width: Int) -> String {
  "<line x1=\"\(tenths(x1))\" x2=\"\(tenths(x2))\" y1=\"\(tenths(y1))\" y2=\"\(tenths(y2))\" stroke=\"\(color)\" stroke-width=\"\(width)\"/>\n"
}

private func text(_ content: String, x: Double, y: Double, style: String = "fill=\"#374151\"") -> String {
  let safe = content.replacing("&", with: "&amp;").replacing("<", with: "&lt;").replacing(">", with: "&gt;")
  return "<text x=\"\(tenths(x))\" y=\"\(tenths(y))\" \(style)>\(safe)</text>\n"
}
