import CTestSupport
import Foundation
import Testing

@testable import PinKit

@Suite("Images on a disk that loses its power") struct ImagePowerTests {
  /// What is being written when the power fails.
  enum Target: String, CaseIterable, Codable, Sendable {
    case new, replacing, increment, composed
  }

  private static let old = ArraySource(pages: 64, seed: 3)
  private static let new = ArraySource(pages: 300, seed: 4, zeros: [120..<130])
  private static let increment = old.changed([3..<20, 40..<41], zeros: [50..<52], seed: 5)
  /// The last step at which nothing of an old image has been removed.
  private static let lastBeforeRemoval: UInt64 = 3

  /// Writes what the disk is to keep when its power fails.
  private static func write(_ target: Target, to path: (String) -> String) throws {
    switch target {
    case .new: _ = try ImageWriter.write(new, to: path("image"))
    case .replacing: _ = try ImageWriter.write(new, to: path("image"), replacing: true)
    case .increment:
      var increment = increment
      // A process makes identities of its own.
      increment.parent = try SnapshotImage(path: path("image")).identity
      _ = try ImageWriter.write(increment, to: path("increment"))
    case .composed: try SnapshotImage.compose([SnapshotImage(path: path("image"))], to: path("raw"), replacing: true)
    }
  }

  /// What is there before.
  private static func prepare(_ target: Target, _ disk: ForgetfulDisk) throws {
    for name in ["image", "image.pinkit", "increment", "increment.pinkit", "raw"] { _ = unsafe unlink(disk(name)) }
    switch target {
    case .new: break
    case .replacing, .increment: _ = try ImageWriter.write(old, to: disk("image"))
    case .composed:
      try SnapshotImage.compose([ImageWriter.write(old, to: disk("image"))], to: disk("raw"))
      _ = try ImageWriter.write(new, to: disk("image"), replacing: true)
    }
  }

  /// What is there is whole, or there is nothing.
  private static func found(_ path: String, _ when: Comment) throws -> SnapshotImage? {
    let image: SnapshotImage
    do { image = try SnapshotImage(path: path) } catch {
      #expect(error.code == .notFound, "\(error): \(when)")
      return nil
    }
    do { try image.verify() } catch { Issue.record(error, "\(path): \(when)") }
    return image
  }

  /// Which of the sources the image is, if there is one.
  private static func found(_ path: String, _ sources: [ArraySource], _ when: Comment) throws -> Int? {
    guard let image = try found(path, when) else { return nil }
    let index = try #require(sources.firstIndex { $0.bytes.count == image.byteCount }, when)
    #expect(try RawFile.read(path) == sources[index].bytes, "\(path): \(when)")
    return index
  }

  @Test(
    "W6: whatever the power fails at, an image is whole or absent, what it is to replace stays until then, and once written it is there",
    .enabled(if: ForgetfulDisk.isPossible, ForgetfulDisk.reason), arguments: Target.allCases)
  func everyRequest(_ target: Target) async throws {
    let disk = try ForgetfulDisk(.ext4)
    let notes = try ChildNotes(beside: disk)
    let base = Seed.base
    var (returned, request) = (0, 0)
    // Once every request has had its turn, a few times after the last.
    while returned < 3 {
      request += 1
      try Self.prepare(target, disk)
      notes.forget()
      await #expect(processExitsWith: .signal(SIGKILL), "seed \(base), request \(request)") {
        [
          target = target as Target, directory = disk("") as String, notes = notes.path as String,
          power = disk.power as ForgetfulDisk.Power, request = request as Int, seed = base + UInt64(request) as UInt64
        ] in
        let notes = try ChildNotes(path: notes)
        TestHooks.set(.imageStep) { notes[0] = UInt64($0) }
        try power.fail(after: request, seed: seed)
        try ImagePowerTests.write(target) { directory + $0 }
        notes[1] = 1
        try power.fail(seed: seed)
      }
      try disk.restore()
      let hasReturned = notes[1] == 1
      if hasReturned { returned += 1 }
      let when: Comment = "seed \(base), request \(request), step \(notes[0]), returned: \(hasReturned)"
      switch target {
      case .new, .replacing:
        let index = try Self.found(disk("image"), target == .new ? [Self.new] : [Self.new, Self.old], when)
        if target == .replacing, notes[0] <= Self.lastBeforeRemoval { #expect(index == 1, when) }
        if hasReturned { #expect(index == 0, when) }
      case .increment:
        #expect(try Self.found(disk("image"), [Self.old], when) == 0, when)
        if let increment = try Self.found(disk("increment"), when) {
          let chain = [try SnapshotImage(path: disk("image")), increment]
          let (elsewhere, whole) = (try ImageDirectory(), Self.increment.bytes)
          do { try SnapshotImage.compose(chain, to: elsewhere("whole")) } catch { Issue.record(error, when) }
          #expect(try RawFile.read(elsewhere("whole")) == whole, when)
        } else {
          #expect(!hasReturned, when)
        }
      case .composed:
        let bytes = try RawFile.read(disk("raw"))
        #expect(bytes == Self.new.bytes || (bytes == Self.old.bytes && !hasReturned), "\(bytes.count) bytes: \(when)")
      }
      // The next writer removes what is left, and nothing else is needed.
      if request % 4 == 0, target != .composed {
        try ImageWriter.write(Self.new, to: disk("image"), replacing: true).verify()
        #expect(!FileManager.default.fileExists(atPath: disk("image.partial")))
      }
      try #require(request < 200, "it never ends")
    }
    #expect(request > 4, "the power failed at \(request) requests only")
  }

  /// Which pages are written before a moment, and with what.
  private static func written(_ moment: Int) -> StrideTo<Int> { stride(from: moment, to: 200, by: moment == 0 ? 1 : 7) }
  private static func value(_ moment: Int, _ page: Int) -> UInt64 { 1 << 32 | UInt64(moment) << 16 | UInt64(page) }

  @Test(
    "W6: snapshots of a region: whenever the power fails, every image that was written restores its moment",
    .enabled(if: ForgetfulDisk.isPossible, ForgetfulDisk.reason))
  func snapshots() async throws {
    let disk = try ForgetfulDisk(.ext4)
    let notes = try ChildNotes(beside: disk)
    let base = Seed.base
    var random = SeededRandom(seed: base)
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous, pages: 200)
    var most: UInt64 = 0
    for attempt in 0..<8 {
      let requests = Int.random(in: 1...80, using: &random)
      let name = "image\(attempt)-"
      notes.forget()
      await #expect(processExitsWith: .signal(SIGKILL), "seed \(base), attempt \(attempt)") {
        [
          path = disk(name) as String, notes = notes.path as String, power = disk.power as ForgetfulDisk.Power,
          requests = requests as Int, seed = base + UInt64(attempt) as UInt64
        ] in
        let notes = try ChildNotes(path: notes)
        let space = try AddressSpace()
        let region = try space.map(.anonymous, pages: 200)
        try power.fail(after: requests, seed: seed)
        var older: Snapshot?
        for moment in 0..<5 {
          for page in ImagePowerTests.written(moment) {
            try region.store(ImagePowerTests.value(moment, page), toByteOffset: page * 4096)
          }
          let snapshot = try region.snapshot()
          try snapshot.write(to: path + String(moment), since: older)
          notes[0] = UInt64(moment + 1)
          older = snapshot
        }
        try power.fail(seed: seed)
      }
      try disk.restore()
      most = max(most, notes[0])
      for moment in 0..<Int(notes[0]) {
        let when: Comment = "seed \(base), attempt \(attempt), request \(requests), moment \(moment) of \(notes[0])"
        do { try region.restore(from: (0...moment).map { try SnapshotImage(path: disk(name + String($0))) }) } catch {
          Issue.record(error, when)
          continue
        }
        for page in 0..<200 {
          let last = (0...moment).last { Self.written($0).contains(page) }!
          let found: UInt64 = try region.load(fromByteOffset: page * 4096)
          #expect(found == Self.value(last, page), "page \(page): \(when)")
        }
      }
      // And nothing that is no image is taken for one.
      _ = try Self.found(disk(name + String(notes[0])), "seed \(base), attempt \(attempt), request \(requests)")
    }
    #expect(most > 0, "nothing was ever written")
    try space.close()
  }
}
