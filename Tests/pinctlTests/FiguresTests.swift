import Foundation
import FoundationXML
import Testing
import Topics

/// What `make figures` draws of a run.
@Suite("make figures") struct FiguresTests {
  private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appending(path: "../..").standardized
  private static let script = "scripts/figures"

  @Test("Every row that the figures and the table ask for is one of the bench's")
  func names() throws {
    let text = try String(contentsOf: Self.root.appending(path: Self.script), encoding: .utf8)
    let rows = Set(BenchTopics.all.flatMap { $0.rows.map(\.name) })
    let asked = text.matches(of: #/"([a-z-]+/[A-Za-z0-9-]+)":/#).map { String($0.output.1) }
    #expect(asked.count > 10 && Set(asked).subtracting(rows).isEmpty)
    let runs = text.matches(of: #/\("([a-z]+)", "([a-z/-]+)", [0-9]+\)/#)
    #expect(runs.count > 5)
    for run in runs {
      let topic = try #require(BenchTopics.all.first { $0.name == run.output.1 })
      #expect(topic.rows.contains { $0.name.contains(run.output.2) }, "\(run.output.0)")
    }
    for name in asked {
      let measured = runs.contains { run in name.contains(run.output.2) }
      #expect(measured, "\(name) is in the table, but not measured")
    }
  }

  @Test(
    "Figures are well-formed, and the table comes between its marks, once, whatever was there",
    .enabled(if: programPath("gnuplot") != nil && programPath("python3") != nil, "there is no gnuplot, or no python3"))
  func drawing() throws {
    let copy = FileManager.default.temporaryDirectory.appending(path: "pinctl-figures-\(UInt64.random(in: .min ... .max))")
    defer { try? FileManager.default.removeItem(at: copy) }
    for folder in ["scripts", "Benchmarks"] {
      try FileManager.default.createDirectory(at: copy.appending(path: folder), withIntermediateDirectories: true)
    }
    for path in [Self.script, "Benchmarks/Figures"] {
      try FileManager.default.copyItem(at: Self.root.appending(path: path), to: copy.appending(path: path))
    }
    let figures = copy.appending(path: "Benchmarks/Figures")
    for name in try FileManager.default.contentsOfDirectory(atPath: figures.path) where name.hasSuffix(".svg") {
      try FileManager.default.removeItem(at: figures.appending(path: name))
    }
    let readme = copy.appending(path: "README.md")
    let marks = ["begin", "end"].map { "<!-- made by `make figures`: \($0) -->" }
    try "before\n\(marks[0])\nold\n\(marks[1])\nafter\n".write(to: readme, atomically: true, encoding: .utf8)

    var report = BenchReport()
    for row in BenchTopics.all.flatMap({ $0.rows }) {
      let result = BenchResult(
        name: row.name, unit: row.unit, pinkit: 2_500, floor: 1_000, floorName: row.floorName, rounds: 3)
      report.entries.append((row.goal, result))
    }
    var object = try #require(try JSONSerialization.jsonObject(with: Data(try report.json().utf8)) as? [String: Any])
    object["machine"] = "two abaci"
    object["isBusy"] = false
    try JSONSerialization.data(withJSONObject: object).write(to: figures.appending(path: "bench.json"))

    for _ in 0..<2 {
      let process = Process()
      process.executableURL = copy.appending(path: Self.script)
      process.arguments = ["--draw"]
      try process.run()
      process.waitUntilExit()
      #expect(process.terminationStatus == 0)
    }
    for name in ["pause", "first-write", "threads"] {
      let svg = try Data(contentsOf: figures.appending(path: "\(name).svg"))
      #expect(XMLParser(data: svg).parse(), "\(name)")
      #expect(svg.count > 4_000, "\(name)")
    }
    let text = try String(contentsOf: readme, encoding: .utf8)
    let lines = text.split(separator: "\n")
    #expect(lines.first == "before" && lines.last == "after" && !text.contains("old"))
    #expect(lines.count { $0 == marks[0] } == 1 && lines.count { $0 == marks[1] } == 1)
    #expect(text.contains("(two abaci)") && !text.contains("busy"))
    #expect(lines.contains("| first write to a page, `.asynchronous` | 2.50 µs | 1.00 µs: WP_ASYNC: the kernel | 2.50 |"))
  }
}
