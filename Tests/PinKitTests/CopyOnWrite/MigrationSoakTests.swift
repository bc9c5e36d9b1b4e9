import Glibc
import Testing

@testable import PinKit

/// Beside a kernel that moves pages about: a page under migration is not present, and has bytes (K4). `PINKIT_SOAK_SECONDS` sets for how long
/// in all.
@Suite("Soak beside page migration", .serialized) struct MigrationSoakTests {
  static let seconds = Double(environmentNumber("PINKIT_SOAK_SECONDS", or: 12)) / Double(MigrationCase.all.count)

  @Test(
    "K4: pages that are being moved are pages with bytes",
    .enabled(if: Compactors.canRun, "needs /proc/sys/vm/compact_memory"),
    arguments: MigrationCase.all)
  func migration(_ work: MigrationCase) throws {
    let compactors = Compactors()
    defer { _ = try? compactors.stop() }
    let end = Kernel.now() + UInt64(Self.seconds * 1e9)
    var round: UInt64 = 0
    repeat {
      round += 1
      let findings = try work.run(seed: Seed.base &+ round)
      try #require(findings == [], "round \(round), seed \(Seed.base)")
    } while Kernel.now() < end
    #expect(try compactors.stop() > 0)
  }
}
