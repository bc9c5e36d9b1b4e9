internal import Terminal
internal import Virtqueue

/// The two scenes as tables.
enum VringPicture {
  /// What happened to the region, and to the queue in it.
  static func lines(_ outcome: VringExchange.Outcome, _ stage: DemoStage) -> [String] {
    let unrest = outcome.unrest
    let left = [
      ("clones", unrest.clones), ("snapshots", unrest.snapshots), ("collections", unrest.collections),
      ("discards", unrest.discards), ("protections", unrest.protections),
    ]
    let rate = outcome.seconds > 0 ? Int(Double(outcome.completed) / outcome.seconds) : 0
    let right = [
      ("chains posted", outcome.posted), ("served once", outcome.servedOnce), ("came back", outcome.completed),
      ("a second", rate), ("denied, tried again", outcome.denied),
    ]
    let title = stage.bold("to the region".padded(to: 32)) + stage.bold("in the queue")
    return ["  " + title]
      + zip(left, right).map { left, right in
        "  " + left.0.padded(to: 14) + left.1.grouped.aligned(to: 10) + "        " + right.0.padded(to: 20)
          + right.1.grouped.aligned(to: 12)
      }
  }

  /// Each kind of garbage, and the device's answer.
  static func lines(_ outcome: VringGarbage.Outcome, _ stage: DemoStage) -> [String] {
    let title = "the driver writes".padded(to: 28) + "served  the device answers"
    var lines = ["  " + stage.bold(title)]
    for found in outcome.cases {
      let mark = found.isRefused ? " " : "✗"
      lines.append(
        "\(mark) " + found.kind.name.padded(to: 28) + "\(found.used)".aligned(to: 6) + "  "
          + (found.answer?.description ?? "nothing"))
    }
    let most = outcome.refused.values.max() ?? 0
    lines.append("")
    lines.append("  " + stage.bold("random rings".padded(to: 28) + " rings"))
    let all =
      [("served to the end", outcome.good)] + outcome.refused.sorted { $0.value > $1.value }.map { ($0.key, $0.value) }
    for (name, count) in all {
      let bar = String(repeating: "▪", count: max(count > 0 ? 1 : 0, 30 * count / max(1, max(most, outcome.good))))
      lines.append("  " + name.padded(to: 26) + count.grouped.aligned(to: 8) + "  " + bar)
    }
    return lines
  }
}
