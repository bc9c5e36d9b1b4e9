internal import CDevices
internal import Foundation
internal import Glibc
internal import PinKit

/// A driver that pins memory under a lock of its own, and cannot wait for a fault.
struct BesideDriverScene: BesideScene {
  let title = "a driver registers pages"
  let needs: [DemoNeed] = DemoNeed.synchronous(.anonymous) + [.mechanism(.handlerThread, .pool)]
  let name = "driver"
  let contract = "P8"
  let story =
    "AF_XDP takes memory for packets: XDP_UMEM_REG. Memory that is protected it refuses, and nobody hears of a fault. Pinned first and "
    + "registered then, by one call, it is taken; a snapshot is right, and a template that the memory was cloned from stays as it was."

  struct Outcome: Codable {
    struct Kind: Codable {
      var name: String
      /// What the driver says of protected memory, and of pinned memory: 0, or an errno.
      var bare: Int32 = 0
      var pinned: Int32 = -1
      var wrong = 0
      var templateWrong = 0
      /// Whether the collection while it is registered, and the first after, have all of its pages, and no later one has any.
      var isCollected = false
    }
    var kinds: [Kind] = []
  }

  private static let pages = 64

  func perform() throws -> Outcome {
    let space = try DemoSpace.make()
    // Memory that nobody manages: whether there is such a driver here at all.
    let plain = UnsafeMutableRawPointer.allocate(byteCount: Self.pages * 4096, alignment: 4096)
    defer { unsafe plain.deallocate() }
    let socket = cdev_register_umem(UInt64(UInt(bitPattern: plain)), UInt64(Self.pages * 4096))
    guard socket >= 0 else { throw BesideObstacle("AF_XDP is not to be had here: errno \(-socket).") }
    close(socket)
    var outcome = Outcome()
    for mechanism in [WriteTracking.Mechanism.handlerThread, .inPlace, .mprotect] {
      let heap = try space.map(.anonymous(hugePages: .never), pages: Self.pages)
      outcome.kinds.append(try Self.drive(heap, nil, mechanism))
    }
    let template = try space.map(.pool, pages: Self.pages)
    for page in 0..<Self.pages { try BesidePages.write(template, page, 0) }
    outcome.kinds.append(try Self.drive(try template.clone(), template, .handlerThread))
    try space.close()
    return outcome
  }

  private static func drive(
    _ region: Region, _ template: Region?, _ mechanism: WriteTracking.Mechanism
  ) throws -> Outcome.Kind {
    var kind = Outcome.Kind(name: "\(mechanism)\(template == nil ? "" : ", a clone")")
    if template == nil { for page in 0..<pages { try BesidePages.write(region, page, 0) } }
    let tracker = try region.trackWrites(mechanism)
    _ = try tracker.collect()
    let bare = cdev_register_umem(UInt64(region.addresses.start), UInt64(region.addresses.count))
    if bare >= 0 { close(bare) } else { kind.bare = -bare }
    _ = try tracker.collect()
    let registration = unsafe try region.register(0..<pages) { bytes in
      let socket = cdev_register_umem(UInt64(UInt(bitPattern: bytes.baseAddress)), UInt64(bytes.count))
      guard socket >= 0 else { throw LedgerFailure("XDP_UMEM_REG", -socket) }
      return { close(socket) }
    }
    kind.pinned = 0
    let during = try tracker.collect()
    let snapshot = try region.snapshot(SnapshotOptions(mechanism: mechanism))
    for page in 0..<pages { try BesidePages.write(region, page, 1) }
    kind.wrong = try BesidePages.wrong(snapshot, Array(repeating: 0, count: pages), in: 0..<pages)
    snapshot.close()
    if let template {
      kind.templateWrong = try (0..<pages).count { page in
        try template.load(fromByteOffset: page * 4096, as: UInt64.self) != BesidePages.word(page, 0)
      }
    }
    try registration.close()
    let after = try tracker.collect()
    kind.isCollected = try during.count == pages && after.count == pages && tracker.collect().isEmpty
    return kind
  }

  func judge(_ outcome: Outcome) -> [Claim] {
    let kinds = outcome.kinds
    return [
      Claim(
        contract: "P8", claim: "memory that is protected is refused, and taken once it is pinned",
        holds: kinds.count == 4 && kinds.allSatisfy { $0.bare != 0 && $0.pinned == 0 },
        evidence: kinds.map { "\($0.name): errno \($0.bare), then \($0.pinned == 0 ? "taken" : "refused")" }
          .joined(separator: "; ") + "."),
      Claim(
        contract: "P8", claim: "a snapshot is right, and the template untouched, while it is registered",
        holds: kinds.count == 4 && kinds.allSatisfy { $0.wrong == 0 && $0.templateWrong == 0 },
        evidence: kinds.map { "\($0.name): \($0.wrong + $0.templateWrong) pages wrong" }.joined(separator: "; ") + "."),
      Claim(
        contract: "P8", claim: "collections have its pages until it is unregistered, and no longer",
        holds: kinds.count == 4 && kinds.allSatisfy(\.isCollected),
        evidence: kinds.map { "\($0.name): \($0.isCollected ? "yes" : "no")" }.joined(separator: "; ") + "."),
    ]
  }
}
