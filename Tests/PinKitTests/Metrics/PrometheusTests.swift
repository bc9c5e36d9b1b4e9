import CTestSupport
import CoreMetrics
import Foundation
import SystemPackage
import Testing

@testable import PinKit
@testable import PinKitPrometheus

@Suite("Text for Prometheus") struct PrometheusTests {
  /// Debian's `prometheus` has it; `make test` takes it out of the package, so that no server is started.
  private static let tool: String? = {
    let root = URL(fileURLWithPath: #filePath).appendingPathComponent("../../../..").standardizedFileURL.path
    return ["/usr/bin/promtool", "/usr/local/bin/promtool", "\(root)/.build/tools/promtool"].first {
      FileManager.default.isExecutableFile(atPath: $0)
    }
  }()

  /// What `promtool check metrics` says, which reads as a scrape does and then complains of names and units; and its status.
  private static func lint(_ text: String) throws -> (status: Int32, output: String) {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: tool!)
    process.arguments = ["check", "metrics"]
    let (input, output) = (Pipe(), Pipe())
    process.standardInput = input
    process.standardOutput = output
    process.standardError = output
    try process.run()
    try input.fileHandleForWriting.write(contentsOf: Data(text.utf8))
    try input.fileHandleForWriting.close()
    let said = try output.fileHandleForReading.readToEnd() ?? Data()
    process.waitUntilExit()
    return (process.terminationStatus, String(decoding: said, as: UTF8.self))
  }

  @Test("Every kind of metric is written as Prometheus reads it") func form() {
    let exporter = PrometheusExporter(descriptions: ["requests": "Requests,\nwith \\ in them."])
    #expect(exporter.text() == "")
    let counter = Counter(label: "requests", dimensions: [("path", "a\"b\\c\nd"), ("code", "200")], factory: exporter)
    counter.increment(by: 3)
    Counter(label: "requests", dimensions: [("code", "200"), ("path", "a\"b\\c\nd")], factory: exporter).increment()
    FloatingPointCounter(label: "9 lives.lost", factory: exporter).increment(by: 1.5)
    let meter = Meter(label: "depth", factory: exporter)
    meter.set(10)
    meter.decrement(by: 2.5)
    Gauge(label: "level:now", factory: exporter).record(Double.infinity)
    Recorder(label: "size_bytes", dimensions: [], aggregate: true, factory: exporter).record(7)
    Timer(label: "wait", factory: exporter).recordNanoseconds(250_000_000)
    // Another kind of the same name.
    Gauge(label: "depth_total", factory: exporter).record(1)
    #expect(
      exporter.text() == """
        # HELP _9_lives_lost_total _9_lives_lost_total, as the program counts it.
        # TYPE _9_lives_lost_total counter
        _9_lives_lost_total 1.5
        # HELP depth depth, as the program counts it.
        # TYPE depth gauge
        depth 7.5
        # HELP depth_total depth_total, as the program counts it.
        # TYPE depth_total gauge
        depth_total 1
        # HELP level:now level:now, as the program counts it.
        # TYPE level:now gauge
        level:now +Inf
        # HELP requests_total Requests,\\nwith \\\\ in them.
        # TYPE requests_total counter
        requests_total{code="200",path="a\\"b\\\\c\\nd"} 4
        # HELP size_bytes size_bytes, as the program counts it.
        # TYPE size_bytes summary
        size_bytes_sum 7
        size_bytes_count 1
        # HELP wait_seconds wait_seconds, as the program counts it.
        # TYPE wait_seconds summary
        wait_seconds_sum 0.25
        wait_seconds_count 1

        """)
    Counter(label: "depth", factory: exporter).increment()
    #expect(exporter.text().contains("depth_total 1\n"))
    Counter(label: "level:now", factory: exporter).increment()
    #expect(exporter.text().contains("level:now_total 1\n"))
    counter.destroy()
    #expect(!exporter.text().contains("requests"))
  }

  @Test("Two kinds of one name are two metrics") func kinds() {
    let exporter = PrometheusExporter()
    Gauge(label: "work", factory: exporter).record(4)
    Recorder(label: "work", dimensions: [], aggregate: true, factory: exporter).record(5)
    Gauge(label: "work", factory: exporter).record(6)
    let lines = exporter.text().split(separator: "\n").filter { !$0.hasPrefix("#") }
    #expect(lines == ["work 6", "work_recorder_sum 5", "work_recorder_count 1"])
  }

  @Test("Whatever a name or a value holds, the text stays one that Prometheus reads") func strange() {
    let exporter = PrometheusExporter(descriptions: ["a": "one\r\ntwo"])
    Counter(label: "a", dimensions: [("x", "1\r\n2"), ("y", "\"\u{301}\\\u{301}"), ("", "z")], factory: exporter).increment()
    Recorder(label: "a_gauge", dimensions: [("quantile", "half")], aggregate: true, factory: exporter).record(1)
    Recorder(label: "b", dimensions: [], aggregate: true, factory: exporter).record(2)
    Recorder(label: "b_gauge", dimensions: [], aggregate: true, factory: exporter).record(3)
    Gauge(label: "b", factory: exporter).record(4)
    let lines = exporter.text().split(separator: "\n")
    #expect(lines.contains("# HELP a_total one\r\\ntwo"))
    #expect(
      lines.contains {
        $0.unicodeScalars.elementsEqual("a_total{_=\"z\",x=\"1\r\\n2\",y=\"\\\"\u{301}\\\\\u{301}\"} 1".unicodeScalars)
      })
    #expect(lines.contains("a_gauge_sum{quantile_=\"half\"} 1"))
    // A line of a summary has the name of another metric.
    Gauge(label: "b_count", factory: exporter).record(5)
    Gauge(label: "c_sum", factory: exporter).record(6)
    Recorder(label: "c", dimensions: [], aggregate: true, factory: exporter).record(7)
    let all = exporter.text().split(separator: "\n")
    #expect(all.contains("b_count_gauge 5") && all.contains("c_sum 6") && all.contains("c_recorder_sum 7"))
    #expect(lines.contains("b_sum 2") && lines.contains("b_gauge_sum 3") && lines.contains("b_gauge_gauge 4"))
  }

  @Test(
    "and promtool reads it", .enabled(if: tool != nil, "there is no promtool: Debian's package prometheus has it"))
  func strangeRead() throws {
    let exporter = PrometheusExporter(descriptions: ["a": "one\r\ntwo"])
    for kind in 0..<3 {
      for label in ["a", "a_sum", "a_count", "", "9", "a.b", "a b"] {
        for value in ["", "1\r\n2", "\"\u{301}", "\\", "\n", "half"] {
          let dimensions = [("quantile", value), ("le", value), ("1", value), ("x", value)]
          switch kind {
          case 0: Recorder(label: label, dimensions: dimensions, aggregate: true, factory: exporter).record(1)
          case 1: Gauge(label: label, dimensions: dimensions, factory: exporter).record(Double.nan)
          default: Counter(label: label, dimensions: dimensions, factory: exporter).increment()
          }
        }
      }
    }
    let said = try Self.lint(exporter.text()).output
    #expect(!said.contains("parsing error"), "\(said)")
  }

  @Test("Threads that count at once lose nothing") func races() throws {
    let exporter = PrometheusExporter()
    let threads = (0..<4).map { index in
      TestThread {
        for _ in 0..<2_000 {
          Counter(label: "hits", dimensions: [("thread", "\(index % 2)")], factory: exporter).increment()
          FloatingPointCounter(label: "sum", factory: exporter).increment(by: 0.5)
          _ = exporter.text()
        }
      }
    }
    for thread in threads { try thread.join() }
    let lines = exporter.text().split(separator: "\n").filter { !$0.hasPrefix("#") }
    #expect(lines == ["hits_total{thread=\"0\"} 4000", "hits_total{thread=\"1\"} 4000", "sum_total 4000"])
  }

  @Test("A file of it is whole at any moment, and stays as it was where it cannot be written") func files() throws {
    let folder = FilePath(NSTemporaryDirectory()).appending("pinkit-prometheus-\(UInt32.random(in: 0 ... .max))")
    try FileManager.default.createDirectory(atPath: folder.string, withIntermediateDirectories: false)
    defer { try? FileManager.default.removeItem(atPath: folder.string) }
    let exporter = PrometheusExporter()
    let counter = Counter(label: "hits", factory: exporter)
    let path = folder.appending("pinkit.prom")
    for round in 1...3 {
      counter.increment()
      try exporter.write(to: path)
      #expect(try String(contentsOfFile: path.string, encoding: .utf8).hasSuffix("\nhits_total \(round)\n"))
    }
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.string) == ["pinkit.prom"])
    #expect(throws: Errno.noSuchFileOrDirectory) { try exporter.write(to: folder.appending("none/x.prom")) }
    // A folder is in the way.
    try FileManager.default.createDirectory(atPath: folder.appending("b.prom").string, withIntermediateDirectories: false)
    #expect(throws: Errno.isDirectory) { try exporter.write(to: folder.appending("b.prom")) }
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.string).sorted() == ["b.prom", "pinkit.prom"])
  }

  @Test(
    "What PinKit counts passes `promtool check metrics`, by classes of pages and what became of them",
    .enabled(if: tool != nil, "there is no promtool: Debian's package prometheus has it"))
  func published() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(280)
      let exporter = PrometheusExporter(descriptions: AddressSpace.metricDescriptions)
      MetricsSystem.bootstrap(exporter)
      var configuration = AddressSpace.Configuration()
      configuration.metricsInterval = 0.01
      let space = try AddressSpace(configuration: configuration)
      let other = try AddressSpace(configuration: configuration)
      let region = try space.map(.pool, pages: 32)
      try region.fill(with: 1)
      let tracker = try region.trackWrites(.handlerThread)
      let clone = try region.clone()
      let snapshots = [try region.snapshot(), try region.snapshot()]
      let otherSnapshot = try other.map(.pool, pages: 8).snapshot()
      for page in 0..<4 { region.poke(2, page) }
      let stored = try space.map(.file(UnrulyStore(pages: 8)), pages: 8)
      stored.poke(3, 1)
      try check(tracker.collect().count, is: 4)
      func has(_ line: String) -> Bool { exporter.text().contains("\n\(line)\n") }
      for line in [
        "pinkit_faults_total{class=\"pool\",delivery=\"handler-thread\"} 4",
        "pinkit_write_decisions_total{class=\"pool\",decision=\"copy\"} 4",
        "pinkit_fault_pages_total{class=\"file\",result=\"supplied\"} 8",
        "pinkit_collected_pages_total{class=\"pool\"} 4", "pinkit_captured_pages_total{class=\"pool\"} 4",
        "pinkit_open_snapshots{class=\"pool\"} 3",
        "pinkit_snapshot_bytes{class=\"pool\"} 16384",
        "pinkit_snapshot_pages{class=\"pool\",state=\"kept\"} 4", "pinkit_snapshot_pages{class=\"pool\",state=\"owed\"} 36",
      ] {
        check(spin(forAtMost: 100) { has(line) }, "\(line) in\n\(exporter.text())")
      }
      let (status, output) = try Self.lint(exporter.text())
      check(status == 0 && output.isEmpty, "\(status): \(output)")
      check(exporter.text().contains("as the program counts it") == false, "a metric has no description")
      for snapshot in snapshots { snapshot.close() }
      check(spin(forAtMost: 100) { has("pinkit_open_snapshots{class=\"pool\"} 1") }, "closed ones count")
      otherSnapshot.close()
      try clone.unmap()
      try space.close()
      try other.close()
      for line in ["pinkit_open_snapshots{class=\"pool\"} 0", "pinkit_pool_resident_bytes 0"] {
        check(has(line), "\(line) in\n\(exporter.text())")
      }
    }
  }
}
