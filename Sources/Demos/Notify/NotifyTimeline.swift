internal import Terminal

/// What happened, drawn from top to bottom: a column for each actor, a row for each event, with its time.
struct NotifyTimeline {
  /// The columns, from left to right.
  var actors: [String]
  var events: [NotifyEvent]

  private static let margin = 12

  func lines(_ stage: DemoStage) -> [String] {
    let width = max(14, (stage.width - Self.margin) / max(1, actors.count))
    var lines = ["µs".aligned(to: Self.margin - 2) + "  " + actors.map { $0.padded(to: width) }.joined()]
    guard let first = events.first?.time else { return lines }
    // Between start and end nobody uses a translation: a thick line.
    var isInside = [Bool](repeating: false, count: actors.count)
    var last = first
    for event in events {
      guard let column = actors.firstIndex(of: event.actor) else { continue }
      if event.time - last > 200_000 {
        lines.append("".padded(to: Self.margin) + isInside.map { ($0 ? "┋" : "┊").padded(to: width) }.joined())
      }
      last = event.time
      let cells = actors.indices.map { index -> String in
        guard index == column else { return (isInside[index] ? "┃" : "│").padded(to: width) }
        let text = String((event.text.isEmpty ? event.kind.rawValue : event.text).prefix(width - 1))
        return stage.bold(text) + String(repeating: " ", count: width - text.count)
      }
      if event.kind == .start { isInside[column] = true }
      if event.kind == .end { isInside[column] = false }
      let time = (Double(event.time - first) / 1000).rounded(to: 1)
      lines.append(time.aligned(to: Self.margin - 2) + "  " + cells.joined())
    }
    return lines
  }
}
