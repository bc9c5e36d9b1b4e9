import PinKit

/// Copy-on-write: what a clone costs, what the first write to a shared page costs, and what the bookkeeping occupies.
enum CowTopic: BenchTopic {
  static let name = "cow"

  static func check() throws {
    let features = try Userfaultfd.availableFeatures()
    guard features.contains([.wpHugetlbfsShmem, .wpUnpopulated, .sigbus]) else {
      throw BenchFault(
        description: "Clones of pool memory need Linux 6.4 or newer: its userfaultfd offers only \(features).")
    }
  }

  static let rows: [BenchRow] = [
    // PinKit's policy opens several pages a fault where many are being written; the floor knows of no policy.
    BenchRow("cow/reuse", goal: .ratio(1.1), floor: "SIGBUS, UFFDIO_WRITEPROTECT in the writer, a page a fault", tries: 3) {
      try reuse($0, .inPlace, .inPlace)
    },
    BenchRow("cow/reuse-thread", goal: .ratio(1.1), floor: "one thread: read(2), UFFDIO_WRITEPROTECT, a page a fault") {
      try reuse($0, .handlerThread, .handlerThread)
    },

    BenchRow("cow/break", goal: .ratio(1), floor: "the kernel's copy after fork()") {
      try breakAway($0, .handlerThread) { $0 }
    },
    BenchRow("cow/break-in-place", goal: .ratio(1), floor: "the kernel's copy after fork()") {
      try breakAway($0, .inPlace) { $0 }
    },
    // A writer that touches a page here and a page there.
    BenchRow("cow/break-sparse", goal: .reported, floor: "the kernel's copy after fork()") {
      try breakAway($0, .handlerThread) { $0 / 100 }
    },
    BenchRow("cow/break-sparse-in-place", goal: .reported, floor: "the kernel's copy after fork()") {
      try breakAway($0, .inPlace) { $0 / 100 }
    },

    BenchRow("clone/create-4k", unit: "µs", goal: .ratio(1), floor: "fork() of 2 GiB on 4 KiB pages") {
      try create($0, huge: false)
    },
    BenchRow("clone/create-thp", unit: "µs", goal: .ratio(1), floor: "fork() of 2 GiB on huge pages") {
      try create($0, huge: true)
    },

    BenchRow("metadata/frame", unit: "bytes", goal: .ratio(1), floor: "the contract's 16 bytes") {
      try metadataOfFrame($0)
    },
  ]
}
