internal import CDevices
internal import Foundation
internal import Glibc
internal import PinKit

/// Bytes that arrive when nobody looks.
struct BesideFlightScene: BesideScene {
  let title = "a read is in flight"
  let needs: [DemoNeed] = DemoNeed.all(.anonymous)
  let name = "flight"
  let contract = "P9"
  let story =
    "A device that is as slow as the scene wants: an O_DIRECT read from it has pinned its pages, and waits. Then the pages are protected: a "
    + "collection. The device answers, and writes beside every protection. Once without the bracket around it, once inside it."

  struct Outcome: Codable {
    struct Kind: Codable {
      var mechanism: String
      /// Pages of the read that a collection has that began after it had ended: without the bracket, and inside it.
      var without = 0
      var inside = 0
      /// Pages that came in, of both.
      var arrived = 0
      /// Pages that a snapshot has wrong which was taken in between, inside the bracket.
      var wrong: Int?
    }
    var kinds: [Kind] = []
    static let pages = 4
  }

  func perform() throws -> Outcome {
    let files = try LedgerFiles(name: "beside")
    var device: OpaquePointer?
    let result = unsafe cdev_slow_device_start(files.directory, 0xC3, &device)
    guard result == 0, let device = unsafe device else {
      throw BesideObstacle("a file system of its own (/dev/fuse) is not to be had here: errno \(-result).")
    }
    defer { unsafe cdev_slow_device_end(device) }
    let descriptor = unsafe cdev_slow_device_open(device)
    guard descriptor >= 0 else { throw LedgerFailure("open the device's file", -descriptor) }
    defer { close(descriptor) }
    var outcome = Outcome()
    let space = try DemoSpace.make()
    for mechanism in WriteTracking.Mechanism.allCases where mechanism != .automatic {
      outcome.kinds.append(unsafe try Self.fly(space, mechanism, device, descriptor))
    }
    try space.close()
    return outcome
  }

  private static func fly(
    _ space: AddressSpace, _ mechanism: WriteTracking.Mechanism, _ device: OpaquePointer, _ descriptor: CInt
  ) throws -> Outcome.Kind {
    var kind = Outcome.Kind(mechanism: "\(mechanism)")
    let region = try space.map(.anonymous(hugePages: .never), pages: 64)
    for page in 0..<64 { try BesidePages.write(region, page, 0) }
    let tracker = try region.trackWrites(mechanism)
    let pages = 8..<8 + Outcome.pages
    for page in pages { try region.touch(page) }
    unsafe try read(region, pages, device, descriptor) { _ = try tracker.collect() }
    kind.without = try tracker.collect().count
    kind.arrived += try arrived(region, pages)
    for page in pages { try BesidePages.write(region, page, 1) }
    _ = try tracker.collect()
    var snapshot: Snapshot?
    let io = try region.beginIO(into: pages)
    unsafe try read(region, pages, device, descriptor) {
      _ = try tracker.collect()
      if mechanism != .asynchronous { snapshot = try region.snapshot(SnapshotOptions(mechanism: mechanism)) }
    }
    io.complete()
    kind.inside = try tracker.collect().count
    kind.arrived += try arrived(region, pages)
    if let snapshot {
      kind.wrong = try BesidePages.wrong(snapshot, (0..<64).map { pages.contains($0) ? 1 : 0 }, in: 0..<64)
      snapshot.close()
    }
    try region.unmap()
    return kind
  }

  /// Reads from the device into `pages`, with `body` run while the read waits there.
  private static func read(
    _ region: Region, _ pages: Range<Int>, _ device: OpaquePointer, _ descriptor: CInt, _ body: () throws -> Void
  ) throws {
    let range = try region.addresses(of: pages)
    let (start, count) = (range.start, range.count)
    unsafe cdev_slow_device_hold(device, 1)
    let isOver = DispatchSemaphore(value: 0)
    Thread.detachNewThread {
      _ = unsafe pread(descriptor, UnsafeMutableRawPointer(bitPattern: start), count, 0)
      isOver.signal()
    }
    while unsafe cdev_slow_device_waiting(device) == 0 { usleep(200) }
    defer {
      unsafe cdev_slow_device_hold(device, 0)
      isOver.wait()
    }
    try body()
  }

  private static func arrived(_ region: Region, _ pages: Range<Int>) throws -> Int {
    try pages.count { try region.load(fromByteOffset: $0 * 4096, as: UInt64.self) == 0xC3C3_C3C3_C3C3_C3C3 }
  }

  func judge(_ outcome: Outcome) -> [Claim] {
    let kinds = outcome.kinds
    return [
      Claim(
        contract: "P9", claim: "inside the bracket what arrives is in the next collection, by every mechanism",
        holds: kinds.count == 4 && kinds.allSatisfy { $0.inside == Outcome.pages && $0.arrived == 2 * Outcome.pages },
        evidence: kinds.map { "\($0.mechanism): \($0.inside) of \(Outcome.pages) pages, without it \($0.without)" }
          .joined(separator: "; ") + "."),
      Claim(
        contract: "P9", claim: "and a snapshot that was taken in between has the bytes from before",
        holds: kinds.count { $0.wrong != nil } == 3 && kinds.allSatisfy { ($0.wrong ?? 0) == 0 },
        evidence: kinds.compactMap { kind in kind.wrong.map { "\(kind.mechanism): \($0) pages wrong" } }
          .joined(separator: "; ") + "."),
    ]
  }
}
