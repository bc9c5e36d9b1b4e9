import PinKit

/// Pins: what it costs to hold memory in place, and to read into it.
enum PinTopic: BenchTopic {
  static let name = "pin"

  static func check() throws {
    do { _ = try SubmissionRing(entries: 1) } catch { throw BenchFault(description: "It needs io_uring: \(error)") }
  }

  static let rows: [BenchRow] = [
    BenchRow("pin/fast", unit: "ns", goal: .value(100), floor: "two atomic read-modify-writes", tries: 20) {
      try single($0, .pool, .write)
    },
    BenchRow("pin/fast-reading", unit: "ns", goal: .value(100), floor: "two atomic read-modify-writes", tries: 20) {
      try single($0, .pool, [])
    },
    BenchRow("pin/fast-anonymous", unit: "ns", goal: .value(100), floor: "two atomic read-modify-writes", tries: 20) {
      try single($0, .anonymous, .write)
    },
    BenchRow("pin/range-512", goal: .value(30), floor: "two atomic read-modify-writes a page", tries: 20) {
      try range($0, .pool)
    },
    BenchRow("pin/range-512-anonymous", goal: .value(30), floor: "two atomic read-modify-writes a page", tries: 20) {
      try range($0, .anonymous)
    },
    BenchRow("fixed/read", unit: "ns/4 KiB", goal: .ratio(1.05), floor: "raw READ_FIXED", tries: 10) {
      try fixedRead($0)
    },
    BenchRow("transfer/read", unit: "ns/64 KiB", goal: .reported, floor: "pread(2) into plain memory", tries: 10) {
      try transferRead($0)
    },
  ]
}
