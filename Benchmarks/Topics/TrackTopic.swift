import PinKit

/// Write tracking: what the first write, arming and collecting cost, and what the bookkeeping occupies.
enum TrackTopic: BenchTopic {
  static let name = "track"

  static func check() throws {
    let features = try Userfaultfd.availableFeatures()
    guard features.contains([.wpAsync, .wpUnpopulated, .sigbus]) else {
      throw BenchFault(description: "The floors need Linux 6.7 or newer: its userfaultfd offers only \(features).")
    }
  }

  static let rows: [BenchRow] = [
    BenchRow("first-write/thread", goal: .ratio(1.1), floor: "one thread: read(2), UFFDIO_WRITEPROTECT") {
      try firstWrite($0, .handlerThread, .handlerThread)
    },
    BenchRow("first-write/in-place", goal: .ratio(1.1), floor: "SIGBUS, UFFDIO_WRITEPROTECT in the writer", tries: 3) {
      try firstWrite($0, .inPlace, .inPlace)
    },
    BenchRow("first-write/async", goal: .ratio(1.05), floor: "WP_ASYNC: the kernel", tries: 3) {
      try firstWrite($0, .asynchronous, .asynchronousByScan)
    },
    BenchRow("first-write/mprotect", goal: .ratio(1.1), floor: "SIGSEGV, mprotect(2) in the writer", tries: 3) {
      try firstWrite($0, .mprotect, .mprotect)
    },
    BenchRow("first-write/adaptive-sequential", goal: .value(500), floor: "one thread, 64 pages a fault, always") {
      try firstWrite(
        $0, .handlerThread, .handlerThread, order: PageOrder.sequential, faultAround: .adaptive(maximum: 64),
        floorFaultPages: 64)
    },
    BenchRow("two-writers/in-place", goal: .ratio(1.1), floor: "SIGBUS, UFFDIO_WRITEPROTECT in the writers", tries: 3) {
      try firstWrite($0, .inPlace, .inPlace, order: PageOrder.randomHalves, writers: 2)
    },

    BenchRow("collect/clean", goal: .ratio(1.2), floor: "PAGEMAP_SCAN loop", tries: 3) {
      try collect($0, .asynchronous, .asynchronousByScan, pages: 524_288) { _ in 0 }
    },
    BenchRow("collect/one-percent", goal: .ratio(1.2), floor: "PAGEMAP_SCAN loop", tries: 3) {
      try collect($0, .asynchronous, .asynchronousByScan, pages: 524_288) { $0 / 100 }
    },
    BenchRow("collect/all", goal: .ratio(1.2), floor: "PAGEMAP_SCAN loop") {
      try collect($0, .asynchronous, .asynchronousByScan, pages: 524_288) { $0 }
    },
    BenchRow("collect/sync-one-percent", goal: .ratio(1.2), floor: "a bitmap, UFFDIO_WRITEPROTECT per run", tries: 10) {
      try collect($0, .handlerThread, .handlerThread, pages: 65_536) { $0 / 100 }
    },
    BenchRow("collect/sync-all", goal: .ratio(1.2), floor: "a bitmap, UFFDIO_WRITEPROTECT per run", tries: 3) {
      try collect($0, .handlerThread, .handlerThread, pages: 65_536) { $0 }
    },

    BenchRow("arm/4k", goal: .ratio(1.1), floor: "UFFDIO_REGISTER, PAGEMAP_SCAN without a vector", tries: 3) {
      try arm($0, .automatic, .asynchronousByScan, pages: 524_288, huge: false)
    },
    BenchRow("arm/thp", goal: .ratio(1.1), floor: "UFFDIO_REGISTER, UFFDIO_WRITEPROTECT", tries: 3) {
      try arm($0, .automatic, .asynchronous, pages: 1_048_576, huge: true)
    },
    BenchRow("arm/4k-thread", goal: .ratio(1.1), floor: "UFFDIO_REGISTER, UFFDIO_WRITEPROTECT", tries: 3) {
      try arm($0, .handlerThread, .handlerThread, pages: 524_288, huge: false)
    },
    BenchRow("arm/thp-thread", goal: .ratio(1.1), floor: "UFFDIO_REGISTER, UFFDIO_WRITEPROTECT", tries: 3) {
      try arm($0, .handlerThread, .handlerThread, pages: 1_048_576, huge: true)
    },

    BenchRow("metadata/page", unit: "bytes", goal: .ratio(1), floor: "the contract's 16 bytes") { _ in
      try metadataOfWrittenPage()
    },
    BenchRow("metadata/untouched-1TiB", unit: "KiB", goal: .ratio(1), floor: "the contract's 1 MiB, page tables included") {
      _ in metadataOfUntouchedMemory()
    },
  ]
}
