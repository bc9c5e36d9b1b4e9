import CTestSupport
import Foundation
import Testing

@testable import PinKit

@Suite("FileStore: processes that are killed") struct FileStoreKillTests {
  private static let pages = 256

  /// Writes every page with the number of the round, flushes, and notes the round in another file: again and again.
  private static func run(_ directory: String, _ options: FileStore.Options, killAfter steps: Int, _ spins: Int) throws {
    let store = try FileStore(path: "\(directory)/pages", options: options)
    let notes = try FileStore(path: "\(directory)/notes")
    var round = try #require(try notes.get(0))
    let buffer = try PageBuffer(pages)
    let done = Shared()
    let killer = HostThread {
      done.wait(for: steps, thenSpin: spins)
      _ = ct_kill(SIGKILL)
    }
    while true {
      round += 1
      for index in 0..<pages { buffer[index] = round << 16 | UInt64(index) }
      // Single pages, runs, and holes between them that the next batch fills.
      let runs = stride(from: 0, to: pages, by: 8).flatMap { [$0..<$0 + 1, $0 + 2..<$0 + 7] }
      let rest = stride(from: 0, to: pages, by: 8).flatMap { [$0 + 1..<$0 + 2, $0 + 7..<$0 + 8] }
      for part in [runs, rest] {
        for case let error? in store.write(part.map { buffer.transfer($0, at: $0.lowerBound) }) { throw error }
        done.add()
      }
      try store.flush()
      done.add()
      try notes.put(0, round)
      done.add()
      try notes.flush()
      done.add()
    }
    killer.join()
  }

  @Test("killed at random moments: every flushed page is there, no page is a mixture", arguments: [false, true])
  func random(_ isDirect: Bool) async throws {
    let directory = try ImageDirectory()
    let options = FileStore.Options { $0.direct = isDirect ? .preferred : .never }
    for (name, count) in [("pages", Self.pages), ("notes", 1)] {
      try FileStore(path: directory(name), creating: count * Memory.pageSize).flush()
    }
    var last: UInt64 = 0
    var moments = SeededRandom(seed: Seed.base)
    for attempt in 0..<25 {
      let (steps, spins) = (Int.random(in: 0..<40, using: &moments), Int.random(in: 0..<20_000, using: &moments))
      await #expect(processExitsWith: .signal(SIGKILL), "attempt \(attempt)") {
        [
          path = directory.path as String, isDirect = isDirect as Bool, steps = steps as Int, spins = spins as Int
        ] in
        try FileStoreKillTests.run(
          path, FileStore.Options { $0.direct = isDirect ? .preferred : .never }, killAfter: steps, spins)
      }
      let store = try FileStore(path: directory("pages"), options: options)
      let flushed = try #require(try FileStore(path: directory("notes")).get(0), "the note is a mixture")
      #expect(flushed >= last)
      for index in 0..<Self.pages {
        let found = try #require(try store.get(index), "page \(index) is a mixture")
        let (round, number) = (found >> 16, Int(found & 0xffff))
        #expect(found == 0 || number == index, "page \(index) has the bytes of \(number)")
        // The next round may have begun.
        #expect((flushed...flushed + 1).contains(round), "page \(index) is of round \(round), flushed was \(flushed)")
      }
      last = flushed
      if attempt == 24 { #expect(last > 0, "no round was ever finished") }
    }
  }
}
