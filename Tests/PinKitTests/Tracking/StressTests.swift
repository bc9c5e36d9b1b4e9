import Glibc
import Testing

@testable import PinKit

/// Several writers against whatever may run beside them.
@Suite("Tracking races", .serialized) struct StressTests {
  private func run(_ plan: SoakPlan) throws {
    var model = SoakModel(plan)
    try model.run()
  }

  private func plan(_ mechanism: WriteTracking.Mechanism, _ operations: Int = 6000) -> SoakPlan {
    var plan = SoakPlan(
      combination: Combination(mechanism: mechanism, subject: .anonymous), seed: Seed.base,
      operations: operations)
    (plan.reads, plan.protects, plan.discards) = (0, 0, 0)
    (plan.otherTrackers, plan.upheavals) = (false, false)
    return plan
  }

  @Test("W1/W5: writers against a tight loop of collections", arguments: Mechanisms.all)
  func tightCollections(_ mechanism: WriteTracking.Mechanism) throws { try run(plan(mechanism)) }

  @Test(
    "W5: the same where faults open neighbours", arguments: Mechanisms.synchronous,
    [FaultAroundPolicy.fixed(4), .adaptive(maximum: 16)])
  func faultAround(_ mechanism: WriteTracking.Mechanism, _ policy: FaultAroundPolicy) throws {
    var plan = plan(mechanism)
    plan.faultAround = policy
    plan.discards = 3
    try run(plan)
  }

  @Test("W5: two trackers, each with its own view, that pause and come and go", arguments: Mechanisms.all)
  func twoTrackers(_ mechanism: WriteTracking.Mechanism) throws {
    var plan = plan(mechanism)
    plan.otherTrackers = true
    try run(plan)
  }

  @Test("unmapping waits for accesses that are faulting, and later ones are told", arguments: Mechanisms.all)
  func unmapUnderAccesses(_ mechanism: WriteTracking.Mechanism) throws {
    for _ in 0..<20 {
      let space = try AddressSpace.forTests()
      let region = try space.map(.anonymous(hugePages: .never), pages: 256)
      let tracker = try region.trackWrites(mechanism)
      let inside = Shared()
      let rounds = Shared()
      let writers = (0..<3).map { index in
        TestThread {
          while true {
            do {
              try unsafe region.withUnsafeMutableBytes { bytes in
                inside.add()
                defer { inside.add(-1) }
                for page in stride(from: index, to: 256, by: 3) { unsafe bytes[page * 4096] = 1 }
                rounds.add()
              }
            } catch let error as PinError where error.code == .unmapped { return }
          }
        }
      }
      try #require(spin { rounds.value > 2 })
      #expect(try tracker.collect().count > 0)
      try region.unmap()
      #expect(inside.value == 0, "the memory went while somebody was inside")
      for writer in writers { try writer.join() }
      try space.close()
    }
  }

  @Test("a store that races with taking the right away throws or lands, and never crashes", arguments: Mechanisms.all)
  func protectUnderStores(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.anonymous(hugePages: .never), pages: 32)
    let tracker = try region.trackWrites(mechanism)
    let isOver = Shared()
    let denied = Shared()
    let landed = Shared()
    let writers = (0..<2).map { index in
      TestThread {
        var value: UInt64 = 0
        while isOver.value == 0 {
          value += 1
          for page in stride(from: index, to: 32, by: 2) {
            do {
              try region.store(value, toByteOffset: page * 4096)
              landed.add()
            } catch let error as PinError where error.code == .accessDenied { denied.add() }
          }
        }
      }
    }
    defer { isOver.value = 1 }
    try #require(spin { landed.value > 0 })
    for round in 0..<4000 where round < 400 || denied.value == 0 {
      try region.protect(8..<24, to: round % 3 == 0 ? .none : .readOnly)
      let before = (8..<24).map { Peek.value(at: region.addresses.start + UInt($0 * 4096)) }
      if round % 8 == 0 { _ = try tracker.collect() }
      let after = (8..<24).map { Peek.value(at: region.addresses.start + UInt($0 * 4096)) }
      #expect(before == after, "W1: a write landed after the right was gone")
      try region.protect(8..<24, to: .readWrite)
    }
    #expect(denied.value > 0)
    isOver.value = 1
    for writer in writers { try writer.join() }
    try space.close()
  }
}
