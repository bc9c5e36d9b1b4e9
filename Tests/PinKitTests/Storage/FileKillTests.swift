import CTestSupport
import Foundation
import Testing

@testable import PinKit

@Suite("Regions over files: processes that are killed") struct FileKillTests {
  private static let pages = 192
  /// From here on a thread writes pages while they are flushed; those before are written between two flushes.
  private static let restless = 96

  /// Writes pages and flushes them again and again, and notes in another region what was flushed. Killed so many
  /// steps and turns of a loop later.
  private static func run(_ directory: String, isDirect: Bool, killAfter steps: Int, _ spins: Int) throws {
    let space = try AddressSpace()
    let options = FileStore.Options { $0.direct = isDirect ? .preferred : .never }
    let region = try space.map(.file(try FileStore(path: "\(directory)/pages", options: options)), pages: pages)
    let notes = try space.map(.file(try FileStore(path: "\(directory)/notes")), pages: 1)
    let start = UInt64(region.addresses.start)
    let note = UInt64(notes.addresses.start)
    var round = ct_load_word(note)
    let done = (restless..<pages).map { Shared(Int(ct_load_word(start + UInt64($0 * 4096)))) }
    let finished = Shared()
    _ = HostThread {
      finished.wait(for: steps, thenSpin: spins)
      _ = ct_kill(SIGKILL)
    }
    _ = HostThread {
      var random = SeededRandom(seed: Seed.of(spins))
      while true {
        let index = Int.random(in: 0..<done.count, using: &random)
        let (page, version) = (start + UInt64((restless + index) * 4096), UInt64(done[index].value) + 1)
        ct_store_word(page, version)
        ct_store_word(page + 4088, version)
        done[index].value = Int(version)
      }
    }
    while true {
      round += 1
      for page in 0..<restless {
        for word in 0..<512 { ct_store_word(start + UInt64(page * 4096 + word * 8), round << 16 | UInt64(page)) }
      }
      finished.add()
      let before = done.map(\.value)
      try region.flush()
      finished.add()
      ct_store_word(note, round)
      for (index, version) in before.enumerated() { ct_store_word(note + 8 + UInt64(index) * 8, UInt64(version)) }
      try notes.flush()
      finished.add()
      _ = try region.reclaim(0..<pages)
      finished.add()
    }
  }

  @Test(
    "P3, W5: killed at random moments: every flushed byte is there, and no page is a mixture", arguments: [false, true])
  func random(_ isDirect: Bool) async throws {
    let directory = try ImageDirectory()
    for (name, count) in [("pages", Self.pages), ("notes", 1)] {
      try FileStore(path: directory(name), creating: count * Memory.pageSize).flush()
    }
    var last: UInt64 = 0
    var moments = SeededRandom(seed: Seed.base)
    for attempt in 0..<20 {
      let (steps, spins) = (Int.random(in: 0..<24, using: &moments), Int.random(in: 0..<20_000, using: &moments))
      await #expect(processExitsWith: .signal(SIGKILL), "attempt \(attempt)") {
        [
          path = directory.path as String, isDirect = isDirect as Bool, steps = steps as Int, spins = spins as Int
        ] in
        try FileKillTests.run(path, isDirect: isDirect, killAfter: steps, spins)
      }
      let pages = try RawFile.read(directory("pages"))
      let notes = try RawFile.read(directory("notes"))
      func word(_ bytes: [UInt8], _ offset: Int) -> UInt64 {
        unsafe bytes.withUnsafeBytes { unsafe $0.loadUnaligned(fromByteOffset: offset, as: UInt64.self) }
      }
      let flushed = word(notes, 0)
      #expect(flushed >= last)
      for page in 0..<Self.restless {
        let found = word(pages, page * 4096)
        #expect((0..<512).allSatisfy { word(pages, page * 4096 + $0 * 8) == found }, "page \(page) is a mixture")
        #expect(found == 0 || Int(found & 0xffff) == page, "page \(page) has the bytes of \(found & 0xffff)")
        #expect(
          (flushed...flushed + 1).contains(found >> 16), "page \(page) is of round \(found >> 16), flushed was \(flushed)")
      }
      for page in Self.restless..<Self.pages {
        let (first, end) = (word(pages, page * 4096), word(pages, page * 4096 + 4088))
        let least = word(notes, 8 + (page - Self.restless) * 8)
        #expect(first >= least, "page \(page) has version \(first), flushed was \(least)")
        #expect(first == end || first == end + 1, "page \(page) is a mixture of \(first) and \(end)")
      }
      last = flushed
    }
    #expect(last > 0, "no round was ever finished")
  }
}
