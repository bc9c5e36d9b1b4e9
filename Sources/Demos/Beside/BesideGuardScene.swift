internal import Foundation
internal import Glibc
internal import PinKit

/// Memory that has no bytes any more.
struct BesideGuardScene: BesideScene {
  let title = "guard pages, and a file that is cut short"
  let needs: [DemoNeed] = DemoNeed.synchronous(.anonymous) + DemoNeed.synchronous(.pool)
  let name = "guard"
  let contract = "K6"
  let story =
    "The program adopts memory, and turns some of its pages into guards (MADV_GUARD_INSTALL): who touches one dies. Snapshots are taken, their "
    + "neighbours written, every other page read. Then a mapping whose file is cut to a half while a snapshot is open."

  struct Outcome: Codable {
    struct Kind: Codable {
      var mechanism: String
      var wrong = 0
      var guardsGone = 0
      var refusal: String?
    }
    var guards: [Kind] = []
    var cuts: [Kind] = []
  }

  private static let pages = 256
  private static let guarded = [3, 64, 65, 200]

  func perform() throws -> Outcome {
    var outcome = Outcome()
    for mechanism in [WriteTracking.Mechanism.handlerThread, .inPlace, .mprotect] {
      outcome.guards.append(try Self.withGuards(mechanism))
      outcome.cuts.append(try Self.cutShort(mechanism))
    }
    return outcome
  }

  private static func adopted(_ space: AddressSpace, _ descriptor: CInt) throws -> Region {
    let flags = descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED
    let start = unsafe mmap(nil, pages * 4096, PROT_READ | PROT_WRITE, flags, descriptor, 0)
    guard let start = unsafe start, unsafe start != MAP_FAILED else { throw LedgerFailure("mmap", errno) }
    let region = unsafe try space.adopt(UnsafeMutableRawBufferPointer(start: start, count: pages * 4096))
    for page in 0..<pages { try BesidePages.write(region, page, 0) }
    return region
  }

  private static func withGuards(_ mechanism: WriteTracking.Mechanism) throws -> Outcome.Kind {
    let space = try DemoSpace.make()
    let region = try adopted(space, -1)
    for page in guarded {
      let address = unsafe UnsafeMutableRawPointer(bitPattern: region.addresses.start + UInt(page * 4096))
      // MADV_GUARD_INSTALL
      guard unsafe madvise(address, 4096, 102) == 0 else { throw BesideObstacle("guard pages came with Linux 6.13.") }
    }
    var kind = Outcome.Kind(mechanism: "\(mechanism)")
    let others = (0..<pages).filter { !guarded.contains($0) }
    do {
      let snapshot = try region.snapshot(SnapshotOptions(mechanism: mechanism))
      for page in others { try BesidePages.write(region, page, 1) }
      kind.wrong = try BesidePages.wrong(snapshot, Array(repeating: 0, count: pages), in: others)
    } catch { kind.refusal = "\(error)" }
    kind.guardsGone = guarded.count { canRead(region.addresses.start + UInt($0 * 4096)) }
    try region.unmap()
    _ = unsafe munmap(UnsafeMutableRawPointer(bitPattern: region.addresses.start), region.addresses.count)
    try space.close()
    return kind
  }

  private static func cutShort(_ mechanism: WriteTracking.Mechanism) throws -> Outcome.Kind {
    let space = try DemoSpace.make(expectsFailures: true)
    let file = try MemoryFile(name: "beside", size: pages * 4096)
    let descriptor = file.descriptor
    let region = try adopted(space, descriptor)
    var kind = Outcome.Kind(mechanism: "\(mechanism)")
    let snapshot = try region.snapshot(SnapshotOptions(mechanism: mechanism, sweep: true))
    guard ftruncate(descriptor, off_t(pages * 2048)) == 0 else { throw LedgerFailure("ftruncate", errno) }
    do {
      for page in 0..<pages / 2 { try BesidePages.write(region, page, 1) }
      kind.wrong = try BesidePages.wrong(snapshot, Array(repeating: 0, count: pages), in: 0..<pages / 2)
    } catch { kind.refusal = "\(error)" }
    snapshot.close()
    try region.unmap()
    _ = unsafe munmap(UnsafeMutableRawPointer(bitPattern: region.addresses.start), region.addresses.count)
    try space.close()
    return kind
  }

  /// As the kernel sees it, without touching it.
  private static func canRead(_ address: UInt) -> Bool {
    var ends: [CInt] = [0, 0]
    guard unsafe pipe(&ends) == 0 else { return true }
    defer { for end in ends { close(end) } }
    return unsafe write(ends[1], UnsafeRawPointer(bitPattern: address), 1) == 1
  }

  func judge(_ outcome: Outcome) -> [Claim] {
    [
      Self.claim(outcome.guards, "beside guards every page with bytes is as it was, and guards stay guards"),
      Self.claim(
        outcome.cuts, "what is left of a file that was cut short is right, or the snapshot says that it is given up"),
    ]
  }

  private static func claim(_ kinds: [Outcome.Kind], _ text: String) -> Claim {
    Claim(
      contract: "K6", claim: text, holds: kinds.count == 3 && kinds.allSatisfy { $0.wrong == 0 && $0.guardsGone == 0 },
      evidence: kinds.map { kind in
        "\(kind.mechanism): \(kind.refusal ?? "\(kind.wrong) pages wrong")"
          + (kind.guardsGone == 0 ? "" : ", \(kind.guardsGone) guards gone")
      }.joined(separator: "; ") + ".")
  }
}
