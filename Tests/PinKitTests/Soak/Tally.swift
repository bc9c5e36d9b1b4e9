import CoreMetrics
import Glibc
import Synchronization

/// What a run has done, for `make soak`: with `PINKIT_TALLY` set, each process that ends adds a line to the file of that name, with what tests
/// counted and what PinKit's own metrics say.
enum Tally {
  enum Kind: String, CaseIterable {
    /// Changes that a test made: stores, discards, changes of protection.
    case operations
    /// Values that were compared with what must be there.
    case checks = "writes checked"
    /// Refusals, short reads, delays and failures that a test put in PinKit's way.
    case faults = "faults injected"
  }

  private static let isOn = unsafe getenv("PINKIT_TALLY") != nil
  private static let counts = Mutex<[String: Int64]>([:])

  /// Before the first space is made, which is when PinKit looks for the program's metrics.
  static func begin() { _ = hasBegun }

  private static let hasBegun: Bool = {
    guard isOn else { return false }
    MetricsSystem.bootstrap(Sums())
    atexit { Tally.end() }
    return true
  }()

  static func add(_ kind: Kind, _ amount: Int = 1) { add(kind.rawValue, Int64(amount)) }

  fileprivate static func add(_ name: String, _ amount: Int64) {
    guard isOn, hasBegun else { return }
    counts.withLock { $0[name, default: 0] += amount }
  }

  private static func end() {
    let line = counts.withLock { $0 }.map { "\($0)\t\($1)\n" }.joined()
    let file = unsafe open(getenv("PINKIT_TALLY"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
    guard file >= 0 else { return }
    _ = unsafe line.utf8CString.withUnsafeBytes { unsafe write(file, $0.baseAddress!, $0.count - 1) }
    close(file)
  }

  /// Adds counters up by their names; keeps nothing else.
  private struct Sums: MetricsFactory {
    private final class Sum: CounterHandler {
      let label: String
      init(_ label: String) { self.label = label }
      func increment(by amount: Int64) { Tally.add(label, amount) }
      func reset() {}
    }

    private let nothing = NOOPMetricsHandler.instance
    func makeCounter(label: String, dimensions: [(String, String)]) -> any CounterHandler { Sum(label) }
    func makeRecorder(label: String, dimensions: [(String, String)], aggregate: Bool) -> any RecorderHandler {
      nothing.makeRecorder(label: label, dimensions: dimensions, aggregate: aggregate)
    }
    func makeTimer(label: String, dimensions: [(String, String)]) -> any TimerHandler {
      nothing.makeTimer(label: label, dimensions: dimensions)
    }
    func destroyCounter(_ handler: any CounterHandler) {}
    func destroyRecorder(_ handler: any RecorderHandler) {}
    func destroyTimer(_ handler: any TimerHandler) {}
  }
}
