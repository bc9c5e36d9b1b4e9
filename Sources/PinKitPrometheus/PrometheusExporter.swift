public import CoreMetrics
internal import Synchronization

/// A metrics system of swift-metrics whose values are read as text, in the form that Prometheus scrapes (text format 0.0.4).
///
/// Made once, as the program starts, and handed to swift-metrics; then every library's metrics are in it, PinKit's among them:
///
/// ```swift
/// let exporter = PrometheusExporter(descriptions: AddressSpace.metricDescriptions)
/// MetricsSystem.bootstrap(exporter)
/// ```
///
/// The program's own HTTP server answers `GET /metrics` with ``text()``, of content type ``contentType``. One that has none writes a file for
/// the textfile collector of node_exporter now and then: ``write(to:)``.
///
/// A name that Prometheus does not allow is changed until it does: characters become underscores, and what counts ends in `_total`. Timers and
/// recorders that aggregate are summaries with a count and a sum, timers in seconds; other recorders and meters are gauges. Where two kinds
/// of metric have one name, the one that came second has its kind behind its name. Metrics of one kind, name and dimensions are one metric.
///
/// Safe to use from any thread; recording takes no lock.
public final class PrometheusExporter: MetricsFactory, Sendable {
  /// What the answer to a scrape is.
  public static let contentType = "text/plain; version=0.0.4; charset=utf-8"

  private struct Families {
    var families: [String: Family] = [:]
    /// Which family a name at the beginning of a line belongs to: a summary has three.
    var owners: [String: String] = [:]
  }
  private struct Family {
    let kind: Kind
    let help: String?
    /// By the text of their labels.
    var series: [String: any Series] = [:]
  }
  private let known = Mutex(Families())
  private let descriptions: [String: String]

  /// - Parameter descriptions: What a metric counts, by the label that it was made with.
  public init(descriptions: [String: String] = [:]) { self.descriptions = descriptions }

  // MARK: Reading

  /// What all metrics say now, in order of their names. Values that change meanwhile may be of slightly different moments.
  public func text() -> String {
    let families = known.withLock { $0.families }
    var text = ""
    for (name, family) in families.sorted(by: { $0.key < $1.key }) where !family.series.isEmpty {
      text += "# HELP \(name) \(Self.escaped(family.help ?? "\(name), as the program counts it."))\n"
      text += "# TYPE \(name) \(family.kind.type)\n"
      for (labels, series) in family.series.sorted(by: { $0.key < $1.key }) {
        for sample in series.samples {
          text += "\(name)\(sample.suffix)\(labels.isEmpty ? "" : "{\(labels)}") \(sample.value)\n"
        }
      }
    }
    return text
  }

  // MARK: Making

  private func series<Found: Series>(
    _ label: String, _ dimensions: [(String, String)], _ kind: Kind, _ make: () -> Found
  ) -> Found {
    let labels = Self.labels(dimensions, kind)
    return known.withLock { known in
      var name = Self.name(label, kind)
      var apart = label
      func isTaken() -> Bool {
        if let family = known.families[name] { return family.kind != kind }
        return Self.lines(of: name, kind).contains { known.owners[$0] != nil }
      }
      while isTaken() {
        apart += "_\(kind)"
        name = Self.name(apart, kind)
      }
      for line in Self.lines(of: name, kind) { known.owners[line] = name }
      var family = known.families[name] ?? Family(kind: kind, help: descriptions[label])
      let series = family.series[labels] as? Found ?? make()
      family.series[labels] = series
      known.families[name] = family
      return series
    }
  }

  private func remove(_ series: any AnyObject) {
    known.withLock { known in
      known.families = known.families.mapValues { family in
        var family = family
        family.series = family.series.filter { $0.value !== series }
        return family
      }
    }
  }

  public func makeCounter(label: String, dimensions: [(String, String)]) -> any CounterHandler {
    series(label, dimensions, .counter) { Count() }
  }
  public func makeFloatingPointCounter(label: String, dimensions: [(String, String)]) -> any FloatingPointCounterHandler {
    series(label, dimensions, .floatingPointCounter) { Sum() }
  }
  public func makeMeter(label: String, dimensions: [(String, String)]) -> any MeterHandler {
    series(label, dimensions, .gauge) { Level() }
  }
  public func makeRecorder(label: String, dimensions: [(String, String)], aggregate: Bool) -> any RecorderHandler {
    aggregate
      ? series(label, dimensions, .recorder) { Summary(unit: 1) } : series(label, dimensions, .gauge) { Level() }
  }
  public func makeTimer(label: String, dimensions: [(String, String)]) -> any TimerHandler {
    series(label, dimensions, .timer) { Summary(unit: 1e9) }
  }

  public func destroyCounter(_ handler: any CounterHandler) { remove(handler) }
  public func destroyFloatingPointCounter(_ handler: any FloatingPointCounterHandler) { remove(handler) }
  public func destroyMeter(_ handler: any MeterHandler) { remove(handler) }
  public func destroyRecorder(_ handler: any RecorderHandler) { remove(handler) }
  public func destroyTimer(_ handler: any TimerHandler) { remove(handler) }
}

extension PrometheusExporter {
  enum Kind {
    case counter, floatingPointCounter, gauge, recorder, timer

    var type: String {
      switch self {
      case .counter, .floatingPointCounter: "counter"
      case .gauge: "gauge"
      case .recorder, .timer: "summary"
      }
    }
  }

  // MARK: Names

  /// What lines of a metric begin with.
  private static func lines(of name: String, _ kind: Kind) -> [String] {
    kind.type == "summary" ? [name, name + "_sum", name + "_count"] : [name]
  }

  static func name(_ label: String, _ kind: Kind) -> String {
    var name = legal(label, colons: true)
    if kind.type == "counter", !name.hasSuffix("_total") { name += "_total" }
    if kind == .timer, !name.hasSuffix("_seconds") { name += "_seconds" }
    return name
  }

  /// The inside of the braces. A label that is there twice has its last value.
  static func labels(_ dimensions: [(String, String)], _ kind: Kind) -> String {
    let values = Dictionary(
      dimensions.map { dimension in
        let name = legal(dimension.0, colons: false)
        // The one that a summary's own lines have.
        return (kind.type == "summary" && name == "quantile" ? "quantile_" : name, dimension.1)
      }
    ) { _, last in last }
    return values.sorted { $0.key < $1.key }.map { "\($0.key)=\"\(escaped($0.value, quotes: true))\"" }.joined(
      separator: ",")
  }

  private static func legal(_ text: String, colons: Bool) -> String {
    var legal = ""
    for scalar in text.unicodeScalars {
      let isLegal =
        scalar.isASCII
        && (scalar.properties.isAlphabetic || ("0"..."9").contains(scalar) || scalar == "_" || colons && scalar == ":")
      legal.unicodeScalars.append(isLegal ? scalar : "_")
    }
    if let first = legal.unicodeScalars.first, !("0"..."9").contains(first) { return legal }
    return "_" + legal
  }

  private static func escaped(_ text: String, quotes: Bool = false) -> String {
    var escaped = String.UnicodeScalarView()
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\\": escaped.append(contentsOf: "\\\\".unicodeScalars)
      case "\n": escaped.append(contentsOf: "\\n".unicodeScalars)
      case "\"" where quotes: escaped.append(contentsOf: "\\\"".unicodeScalars)
      default: escaped.append(scalar)
      }
    }
    return String(escaped)
  }
}
