import Glibc
import Testing

@testable import PinKit

/// Random operations against a shadow model. `PINKIT_SOAK_OPERATIONS` sets how many writer operations there are in all.
@Suite("Soak", .serialized) struct SoakTests {
  /// `PINKIT_SOAK_CASE` picks one of the combinations by its index.
  static let combinations = environmentNumber("PINKIT_SOAK_CASE").map { [Combination.all[$0]] } ?? Combination.all
  static let operations =
    max(
      1, environmentNumber("PINKIT_SOAK_OPERATIONS", or: 60_000) / max(1, combinations.count { $0.subject.obstacle == nil }))

  @Test("Soak: random operations by several threads against a shadow model (W5, K1)", arguments: combinations)
  func soak(_ combination: Combination) throws {
    var plan = SoakPlan(combination: combination, seed: Seed.base, operations: Self.operations)
    if combination.subject == .hugetlb { plan.pageCount = 12 }
    var model = SoakModel(plan)
    try model.run()
    #expect(model.collections > 0)
  }
}
