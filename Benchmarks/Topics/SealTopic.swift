import PinKit
import PinKitCrypto

/// Sealed pages: what it costs to make a page unreadable and to open it again, and what those pay who never do.
enum SealTopic: BenchTopic {
  static let name = "seal"
  private static let floor = "AES-GCM on a plain page, mprotect(2) of it"

  static func check() throws {
    do {
      try pool(pages: 1).region.seal(0..<1)
    } catch {
      throw BenchFault(description: "Pages cannot be sealed here: \(error)")
    }
  }

  static let rows: [BenchRow] = [
    BenchRow("seal/page", goal: .ratio(1.3), floor: floor, tries: 10) { try sealing($0, stride: 256) },
    BenchRow("open/page", goal: .ratio(1.3), floor: "\(floor), a load", tries: 10) { try opening($0, .byName) },
    BenchRow("seal/single", goal: .reported, floor: floor, tries: 5) { try sealing($0, stride: 1) },
    BenchRow("open/fault", goal: .reported, floor: "\(floor), a load", tries: 5) { try opening($0, .byTouching) },
    BenchRow(
      "pending/none-pin", unit: "ns", goal: .value(100), floor: "two atomic read-modify-writes", tries: 20
    ) { try pinning($0) },
    BenchRow("pending/none-write-fault", goal: .ratio(1.1), floor: "one thread: read(2), UFFDIO_WRITEPROTECT", tries: 3) {
      try TrackTopic.firstWrite($0, .handlerThread, .handlerThread)
    },
  ]
}
