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

    BenchRow("arm/4k", goal: .ratio(1.1), floor: "userfaultfd, REGISTER, WRITEPROTECT", tries: 3) {
      try arm($0, .handlerThread, .handlerThread, pages: 524_288, huge: false)
    },
    BenchRow("arm/thp", goal: .ratio(1.1), floor: "userfaultfd, REGISTER, WRITEPROTECT", tries: 3) {
      try arm($0, .handlerThread, .handlerThread, pages: min(2_097_152, FloorMemory.freePages / 2 & ~511), huge: true)
    },
    // Untouched memory must stay untouched: nothing may be armed blindly.
    BenchRow("arm/4k-async", goal: .ratio(1.1), floor: "userfaultfd, REGISTER, PAGEMAP_SCAN", tries: 3) {
      try arm($0, .asynchronous, .asynchronousByScan, pages: 524_288, huge: false)
    },
    BenchRow("arm/thp-async", goal: .ratio(1.1), floor: "the same, WRITEPROTECT where pages are huge", tries: 3) {
      try arm($0, .asynchronous, .asynchronousHuge, pages: min(2_097_152, FloorMemory.freePages / 2 & ~511), huge: true)
    },

    BenchRow("metadata/page", unit: "bytes", goal: .ratio(1), floor: "the contract's 16 bytes") { _ in
      try metadataOfWrittenPage()
    },
    BenchRow("metadata/untouched-1TiB", unit: "KiB", goal: .ratio(1), floor: "the contract's 1 MiB, page tables included") {
      _ in metadataOfUntouchedMemory()
    },
  ]
}
