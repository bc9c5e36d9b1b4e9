import CTestSupport
import Foundation
import Testing

@testable import PinKit

@Suite("Images of processes that are killed") struct ImageKillTests {
  private let directory: ImageDirectory
  init() throws { directory = try ImageDirectory() }

  /// Whatever is there is a whole image or none, and the next writer starts afresh.
  private func expectWholeOrNone(_ path: String, _ sources: [ArraySource]) throws -> Bool {
    let image: SnapshotImage
    do { image = try SnapshotImage(path: path) } catch {
      let error = try #require(error as PinError?)
      #expect(error.code == .notFound, "\(error)")
      return false
    }
    try image.verify()
    let source = try #require(sources.first { $0.bytes.count == image.byteCount })
    #expect(try RawFile.read(path) == source.bytes)
    return true
  }

  private static let old = ArraySource(pages: 64, seed: 3)
  private static let new = ArraySource(pages: 3000, seed: 4, zeros: [1200..<1300])

  @Test("killed at every step of the exchange of files", arguments: [false, true])
  func everyStep(_ replacing: Bool) async throws {
    let path = directory("image")
    var outcomes: [Bool] = []
    for step in 1...20 {
      if replacing { _ = try ImageWriter.write(Self.old, to: path, replacing: true) }
      let result = await #expect(processExitsWith: .failure) {
        [path = path as String, step = step as Int, replacing = replacing as Bool] in
        TestHooks.set(.imageStep) { if $0 == step { _ = ct_kill(SIGKILL) } }
        _ = try ImageWriter.write(Self.new, to: path, replacing: replacing)
        ct_exit(7)
      }
      let isWhole = try expectWholeOrNone(path, [Self.old, Self.new])
      outcomes.append(isWhole)
      let hasEnded = result?.exitStatus == .exitCode(7)
      #expect(hasEnded ? isWhole : result?.exitStatus == .signal(SIGKILL))
      // The next writer removes what is left, and nothing else is needed.
      try ImageWriter.write(Self.new, to: path, replacing: replacing || isWhole).verify()
      #expect(directory.names == ["image", "image.pinkit"])
      if !replacing { for name in directory.names { try FileManager.default.removeItem(atPath: directory(name)) } }
      if hasEnded { break }
    }
    #expect(outcomes.last == true, "the last step was not reached")
    #expect(outcomes.contains(false), "an image was there before it was whole, or an old one survived its exchange")
    #expect(outcomes.first == replacing, "what was there before is there until the exchange begins")
  }

  @Test("killed at random moments, over and over") func random() async throws {
    let path = directory("image")
    var (whole, none) = (0, 0)
    var moments = SeededRandom(seed: Seed.base)
    for round in 0..<40 {
      let (steps, spins) = (Int.random(in: 0..<60, using: &moments), Int.random(in: 0..<20_000, using: &moments))
      await #expect(processExitsWith: .signal(SIGKILL), "round \(round)") {
        [path = path as String, steps = steps as Int, spins = spins as Int] in
        let sources = [ArraySource(pages: 1500, seed: 3), ArraySource(pages: 2000, seed: 4, zeros: [100..<900])]
        let done = Shared()
        TestHooks.set(.imageStep) { _ in done.add() }
        let killer = HostThread {
          done.wait(for: steps, thenSpin: spins)
          _ = ct_kill(SIGKILL)
        }
        while true { for source in sources { _ = try ImageWriter.write(source, to: path, replacing: true) } }
        killer.join()
      }
      let sources = [ArraySource(pages: 1500, seed: 3), ArraySource(pages: 2000, seed: 4, zeros: [100..<900])]
      if try expectWholeOrNone(path, sources) { whole += 1 } else { none += 1 }
      #expect(Set(directory.names).isSubset(of: ["image", "image.pinkit", "image.partial", "image.pinkit.partial"]))
    }
    #expect(whole + none == 40)
    try ImageWriter.write(Self.new, to: path, replacing: true).verify()
    #expect(directory.names == ["image", "image.pinkit"])
  }
}
