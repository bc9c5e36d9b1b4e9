import Glibc
import Testing

@testable import PinKit

/// Families of clones against a shadow model. `PINKIT_FAMILY_ROUNDS` sets how many rounds each case runs.
@Suite("Families of clones", .serialized) struct FamilyTests {
  static let rounds = environmentNumber("PINKIT_FAMILY_ROUNDS", or: 40)

  static let policies: [ReusePolicy] = [.exclusive, .refcount, .mapcount, .unsafeBareMapcount]

  struct Case: Sendable, CustomTestStringConvertible {
    var policy: ReusePolicy
    var mechanism: WriteTracking.Mechanism
    var testDescription: String { "\(policy), \(mechanism)" }
    static let all = FamilyTests.policies.flatMap { policy in
      Mechanisms.synchronous.map { Case(policy: policy, mechanism: $0) }
    }
  }

  @Test("W5: every region holds what its own history says, every clone one moment of its parent", arguments: Case.all)
  func races(_ example: Case) throws {
    let plan = FamilyPlan(policy: example.policy, mechanism: example.mechanism, seed: Seed.base, rounds: Self.rounds)
    let model = FamilyModel(plan)
    try model.run()
    #expect(model.clones > 0)
    #expect(model.copies > 0)
  }

  @Test("K1/W5: the same beside an exact tracker and forks", arguments: Case.all)
  func tracked(_ example: Case) throws {
    var plan = FamilyPlan(policy: example.policy, mechanism: example.mechanism, seed: Seed.base, rounds: Self.rounds)
    plan.tracks = true
    plan.forks = true
    plan.members = 3
    let model = FamilyModel(plan)
    try model.run()
    #expect(model.clones > 0)
  }
}
