internal import Foundation
internal import Glibc
internal import PinKit

/// Daemons with keys lock their memory.
struct BesideLockScene: BesideScene {
  let title = "a process that locks its memory"
  let needs: [DemoNeed] = [.stores]
  let name = "lock"
  let contract = "K5"
  let story =
    "mlockall(MCL_CURRENT | MCL_FUTURE): from now on the kernel fills every mapping at once, with zeros. Regions over a file are mapped before "
    + "and after it; they are read, written and flushed. Other memory is discarded."

  struct Outcome: Codable {
    struct Kind: Codable {
      var name: String
      var read = 0
      var durable = 0
    }
    var kinds: [Kind] = []
    var discarded: [String: Bool] = [:]
  }

  private static let pages = 64

  func perform() throws -> Outcome {
    var limit = rlimit()
    guard unsafe getrlimit(__rlimit_resource_t(8), &limit) == 0, limit.rlim_cur > 1 << 30 || geteuid() == 0 else {
      throw BesideObstacle("RLIMIT_MEMLOCK is \(limit.rlim_cur >> 20) MiB.")
    }
    let space = try DemoSpace.make()
    let files = try LedgerFiles(name: "beside")
    let before = try DemoFile(files.path("before"), Self.content(0))
    let after = try DemoFile(files.path("after"), Self.content(0))
    let first = try space.map(.file(try FileStore(path: before.path)), pages: Self.pages)
    guard mlockall(MCL_CURRENT | MCL_FUTURE) == 0 else { throw BesideObstacle("mlockall(2) is refused here.") }
    let second = try space.map(.file(try FileStore(path: after.path)), pages: Self.pages)
    var outcome = Outcome()
    for (name, region, file) in [("mapped before", first, before), ("mapped after", second, after)] {
      var kind = Outcome.Kind(name: name)
      for page in 0..<Self.pages
      where try region.load(fromByteOffset: page * 4096, as: UInt64.self) == BesidePages.word(page, 0) { kind.read += 1 }
      for page in 0..<Self.pages { try BesidePages.write(region, page, 1) }
      try region.flush()
      for page in 0..<Self.pages {
        let bytes = try file.page(page)
        if unsafe bytes.withUnsafeBytes({ unsafe $0.load(as: UInt64.self) }) == BesidePages.word(page, 1) {
          kind.durable += 1
        }
      }
      outcome.kinds.append(kind)
    }
    for (name, backing) in [("anonymous", Backing.anonymous), ("pool", .pool)] {
      let region = try space.map(backing, pages: Self.pages)
      for page in 0..<Self.pages { try BesidePages.write(region, page, 1) }
      try region.discard(0..<Self.pages)
      outcome.discarded[name] = try (0..<Self.pages).allSatisfy { page in
        try region.load(fromByteOffset: page * 4096, as: UInt64.self) == 0
      }
    }
    try space.close()
    return outcome
  }

  private static func content(_ round: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: pages * 4096)
    for page in 0..<pages {
      unsafe bytes.withUnsafeMutableBytes {
        unsafe $0.storeBytes(of: BesidePages.word(page, round), toByteOffset: page * 4096, as: UInt64.self)
      }
    }
    return bytes
  }

  func judge(_ outcome: Outcome) -> [Claim] {
    let described = outcome.kinds.map { "\($0.name): \($0.read) of \(Self.pages) pages read, \($0.durable) in the file" }
    return [
      Claim(
        contract: "K5", claim: "a region over a file has the file's bytes, and the file has what was written",
        holds: outcome.kinds.count == 2 && outcome.kinds.allSatisfy { $0.read == Self.pages && $0.durable == Self.pages },
        evidence: described.joined(separator: "; ") + "."),
      Claim(
        contract: "K5", claim: "locked memory can be discarded",
        holds: outcome.discarded.count == 2 && outcome.discarded.values.allSatisfy { $0 },
        evidence: outcome.discarded.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value ? "zeros" : "not zeros")" }
          .joined(separator: ", ") + "."),
    ]
  }
}
