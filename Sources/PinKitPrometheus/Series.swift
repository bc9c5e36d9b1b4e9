internal import CoreMetrics
internal import Synchronization

/// The values of one metric with one set of labels.
protocol Series: AnyObject, Sendable {
  /// What is behind the name, and the value.
  var samples: [(suffix: String, value: String)] { get }
}

/// A number with a fraction that is changed from any thread.
struct AtomicDouble: ~Copyable, Sendable {
  private let bits = Atomic<UInt64>(0)

  var value: Double { Double(bitPattern: bits.load(ordering: .relaxed)) }
  /// The value as Prometheus writes it.
  var text: String {
    let value = value
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value > 0 ? "+Inf" : "-Inf" }
    return Int64(exactly: value).map { "\($0)" } ?? "\(value)"
  }

  func set(_ value: Double) { bits.store(value.bitPattern, ordering: .relaxed) }

  func add(_ amount: Double) {
    var before = bits.load(ordering: .relaxed)
    while true {
      let after = (Double(bitPattern: before) + amount).bitPattern
      let (done, seen) = bits.compareExchange(expected: before, desired: after, ordering: .relaxed)
      if done { return }
      before = seen
    }
  }
}

final class Count: Series, CounterHandler {
  private let value = Atomic<Int64>(0)
  var samples: [(suffix: String, value: String)] { [("", "\(value.load(ordering: .relaxed))")] }
  func increment(by amount: Int64) { value.wrappingAdd(max(0, amount), ordering: .relaxed) }
  func reset() { value.store(0, ordering: .relaxed) }
}

final class Sum: Series, FloatingPointCounterHandler {
  private let value = AtomicDouble()
  var samples: [(suffix: String, value: String)] { [("", value.text)] }
  func increment(by amount: Double) { value.add(max(0, amount)) }
  func reset() { value.set(0) }
}

final class Level: Series, MeterHandler, RecorderHandler {
  private let value = AtomicDouble()
  var samples: [(suffix: String, value: String)] { [("", value.text)] }
  func set(_ value: Int64) { self.value.set(Double(value)) }
  func set(_ value: Double) { self.value.set(value) }
  func increment(by amount: Double) { value.add(amount) }
  func decrement(by amount: Double) { value.add(-amount) }
  func record(_ value: Int64) { self.value.set(Double(value)) }
  func record(_ value: Double) { self.value.set(value) }
}

final class Summary: Series, RecorderHandler, TimerHandler {
  private let count = Atomic<Int64>(0)
  private let sum = AtomicDouble()
  private let unit: Double
  /// - Parameter unit: What one of Prometheus's is in the values' own.
  init(unit: Double) { self.unit = unit }
  var samples: [(suffix: String, value: String)] {
    [("_sum", sum.text), ("_count", "\(count.load(ordering: .relaxed))")]
  }
  func record(_ value: Int64) { record(Double(value)) }
  func record(_ value: Double) {
    sum.add(value / unit)
    count.wrappingAdd(1, ordering: .relaxed)
  }
  func recordNanoseconds(_ duration: Int64) { record(Double(duration)) }
}
