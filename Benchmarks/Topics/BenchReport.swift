import Foundation

/// What a run of `pinctl bench` shows.
public struct BenchReport: Sendable {
  /// The rows that were measured, each with what it is held to.
  public var entries: [(goal: BenchGoal, result: BenchResult)] = []

  public init() {}

  /// `{"results":[…]}`, the ratio unrounded.
  public func json() throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    return String(decoding: try encoder.encode(["results": entries.map(\.result)]), as: UTF8.self)
  }

  /// An aligned table; `!` marks a goal that was missed.
  public func table() -> String {
    var lines = [["", "unit", "PinKit", "floor", "ratio", "goal", "", "the floor is"]]
    for (goal, result) in entries {
      lines.append([
        result.name, result.unit, figure(result.pinkit), figure(result.floor), figure(result.ratio),
        goal.text(result.unit), result.meets(goal) ? "" : "!", result.floorName,
      ])
    }
    let widths = lines[0].indices.map { column in lines.map { $0[column].count }.max() ?? 0 }
    let right = 2...4
    return lines.map { cells in
      let padded = cells.indices.map { column in
        let space = String(repeating: " ", count: widths[column] - cells[column].count)
        return right.contains(column) ? space + cells[column] : cells[column] + space
      }
      var line = padded.joined(separator: "  ")
      while line.last == " " { line.removeLast() }
      return line
    }.joined(separator: "\n")
  }
}

extension BenchGoal {
  func text(_ unit: String) -> String {
    switch self {
    case .ratio(let limit): "≤ \(figure(limit))×"
    case .value(let limit): "≤ \(figure(limit)) \(unit)"
    case .added(let limit): "≤ floor + \(figure(limit)) \(unit)"
    case .reported: ""
    }
  }
}

/// Three significant digits, never an exponent.
func figure(_ value: Double) -> String {
  let size = abs(value)
  if size != 0 && size < 0.1 { return String(format: "%.3f", value) }
  if size < 10 { return String(format: "%.2f", value) }
  if size < 100 { return String(format: "%.1f", value) }
  return String(format: "%.0f", value)
}
