import Glibc
import Testing

@testable import PinKit

/// Random operations against a shadow model. `PINKIT_SOAK_OPERATIONS` sets how many writer operations there are in all, and
/// `PINKIT_SOAK_SEED` makes a run take the decisions of an earlier one again.
@Suite("Soak", .serialized) struct SoakTests {
  private static func number(_ name: String) -> Int? {
    guard let text = unsafe getenv(name) else { return nil }
    return Int(unsafe String(cString: text))
  }

  /// `PINKIT_SOAK_CASE` picks one of the combinations by its index.
  static let combinations = number("PINKIT_SOAK_CASE").map { [Combination.all[$0]] } ?? Combination.all
  static let operations =
    max(1, (number("PINKIT_SOAK_OPERATIONS") ?? 60_000) / max(1, combinations.count { $0.subject.obstacle == nil }))
  static let seed = UInt64(number("PINKIT_SOAK_SEED") ?? Int(Kernel.now() & 0xffff_ffff))

  @Test("Soak: random operations by several threads against a shadow model (W5, K1)", arguments: combinations)
  func soak(_ combination: Combination) throws {
    var plan = SoakPlan(combination: combination, seed: Self.seed, operations: Self.operations)
    if combination.subject == .hugetlb { plan.pageCount = 12 }
    var model = SoakModel(plan)
    try model.run()
    #expect(model.collections > 0)
  }
}
