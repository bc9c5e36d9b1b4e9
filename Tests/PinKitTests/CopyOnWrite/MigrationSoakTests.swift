import Glibc
import Testing

@testable import PinKit

/// Beside a kernel that moves pages about: a page under migration is not present, and has bytes (K4). `PINKIT_SOAK_SECONDS` sets for how long
/// in all, and `PINKIT_SOAK_SEED` makes a run write the pages of an earlier one again.
@Suite("Soak beside page migration", .serialized) struct MigrationSoakTests {
  private static func number(_ name: String) -> Int? {
    guard let text = unsafe getenv(name) else { return nil }
    return Int(unsafe String(cString: text))
  }

  static let seconds = Double(number("PINKIT_SOAK_SECONDS") ?? 12) / Double(MigrationCase.all.count)
  static let seed = UInt64(number("PINKIT_SOAK_SEED") ?? Int(Kernel.now() & 0xffff_ffff))

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
      let findings = try work.run(seed: Self.seed &+ round)
      try #require(findings == [], "round \(round), seed \(Self.seed)")
    } while Kernel.now() < end
    #expect(try compactors.stop() > 0)
  }
}
