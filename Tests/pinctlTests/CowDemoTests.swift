import Foundation
import PinKit
import Terminal
import Testing

@testable import Demos

@Suite("pinctl demo cow", .serialized) struct CowDemoTests {
  @Test("W2/W3/W4/W5/K1: every claim holds, and the JSON says so")
  func claims() throws {
    let (code, output, error) = try pinctl(["demo", "cow", "--json", "--clones", "6"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "cow")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    let named = Set(result.claims.map { "\($0.contract) \($0.claim)" })
    #expect(
      named.isSuperset(of: [
        "W3 bare mapcount: the leak can be reproduced", "W3 mapcount: nothing leaks", "W3 refcount: nothing leaks",
        "W3 exclusive: nothing leaks", "W4 refcount: a lookup costs a needless copy, and each is counted",
        "W4 exclusive: a lookup costs no copy", "W4 exclusive: device and owner stay with one frame",
        "W4 refcount: alone it lets them part",
        "K1 when all are unmapped, every count is zero and all memory is given back",
      ]))
    #expect(Set(result.claims.map(\.contract)) == ["W2", "W3", "W4", "W5", "K1"])
    #expect(named.count == result.claims.count)
    let asked = Set(result.measurements.map(\.subject)).union(result.skipped.map(\.subject))
    for memory in CowKernelScene.Memory.allCases { #expect(asked.contains("the kernel: \(memory.name)")) }
    // As root the kernel is asked for its map counts, or it says why not.
    let compares = named.contains("K1 map counts are those of /proc/kpagecount")
    #expect(compares != result.skipped.map(\.subject).contains("/proc/kpagecount"))
  }

  @Test("Plain output has no escape codes, and the pictures")
  func drawsPlainly() throws {
    let (code, output, _) = try pinctl(["demo", "cow", "--clones", "3"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    #expect(shown.contains("parent ─ child ─ pin") && shown.contains("\ntemplate  ") && shown.contains("had by 4"))
    #expect(shown.contains("✓ holds  W3"))
  }

  @Test("Numbers that make no sense are refused, code 64") func refuses() throws {
    for clones in ["0", "101", "many"] { #expect(try pinctl(["demo", "cow", "--clones", clones]).code == 64) }
  }
}

@Suite("What the cow demo claims") struct CowJudgeTests {
  /// The claims that do not hold, by contract.
  private func failing(_ claims: [Claim]) -> [String] { claims.filter { !$0.holds }.map(\.contract) }

  private func leak(seen: String, _ many: CowLeak.Total, parentReads: String = "key", moved: Bool = true) -> (
    leaking: [String], safe: [String]
  ) {
    let one = CowLeak.Outcome(
      before: "public", secret: "key", seen: seen, parentReads: parentReads,
      countsBefore: FrameCounts(references: 1025, mappings: 1), decided: .copy, isSameFrame: !moved)
    return (
      failing(CowLeakScene.judge(.refcount, shouldLeak: true, one, many)),
      failing(CowLeakScene.judge(.refcount, shouldLeak: false, one, many))
    )
  }

  @Test("W3: one leak in many is found, and so is a leak that does not happen where it should") func leaks() {
    let kept = CowLeak.Total(attacked: 8, leaked: 0, kept: 8, lost: 0)
    let all = CowLeak.Total(attacked: 8, leaked: 8, kept: 0, lost: 0)
    #expect(leak(seen: "public", kept) == (["W3"], []))
    #expect(leak(seen: "key", all) == ([], ["W3"]))
    #expect(leak(seen: "key", kept) == (["W3"], ["W3"]))
    #expect(leak(seen: "public", .init(attacked: 8, leaked: 1, kept: 7)) == (["W3"], ["W3"]))
    #expect(leak(seen: "torn", .init(attacked: 8, leaked: 0, kept: 7)) == (["W3"], ["W3"]))
    #expect(leak(seen: "public", .init()).safe == ["W3"])
  }

  @Test("W2: a write that was lost, or did not do what the rule says, is found") func decisions() {
    let kept = CowLeak.Total(attacked: 8, leaked: 0, kept: 8, lost: 0)
    #expect(leak(seen: "public", kept, parentReads: "public").safe == ["W2"])
    #expect(leak(seen: "public", kept, moved: false).safe == ["W2"])
    #expect(leak(seen: "public", .init(attacked: 8, leaked: 0, kept: 8, lost: 1)).safe == ["W2"])
  }

  @Test("W3: what the kernel does is told, what could not be tried is no failure, and a control that fails is one")
  func kernel() {
    func found(_ results: [CInt]) -> DemoFindings {
      CowKernelScene.judge(
        zip(CowKernelScene.Memory.allCases, results).map { .init(memory: $0, result: $1, seen: "what it read") })
    }
    let leaking = found([1, 1, 1])
    #expect(failing(leaking.claims) == [] && leaking.claims.count == 1 && leaking.skipped.isEmpty)
    #expect(leaking.measurements.map(\.value) == [1, 1, 1])
    #expect(failing(found([0, 0, 0]).claims) == ["W3"])
    let untried = found([-1, -1, -1])
    #expect(untried.claims.isEmpty && untried.skipped.count == 3 && untried.measurements.isEmpty)
  }

  @Test("W4: a copy that was not counted, or made under .exclusive, is found") func lookups() {
    let none = CowLookupScene.Round()
    let all = CowLookupScene.Round(moved: 4, copies: 4, spurious: 4)
    func judge(_ policy: ReusePolicy, _ held: CowLookupScene.Round, quiet: CowLookupScene.Round, wrong: Int = 0) -> [String]
    {
      failing(
        CowLookupScene.judge(
          .init(policy: policy, pages: 4, quiet: quiet, lookedUp: held, unmarked: all, wrong: wrong, checked: 8)))
    }
    #expect(judge(.refcount, all, quiet: none) == [])
    #expect(judge(.exclusive, none, quiet: none) == [])
    #expect(judge(.exclusive, .init(moved: 1), quiet: none) == ["W4"])
    #expect(judge(.refcount, .init(moved: 4, copies: 4, spurious: 3), quiet: none) == ["W4"])
    #expect(judge(.refcount, all, quiet: all) == ["W4"])
    #expect(judge(.refcount, none, quiet: none, wrong: 1) == ["W4", "W4"])
  }

  @Test("W4/W5: a write that the device missed, or that a clone saw, is found") func devices() {
    func judge(_ policy: ReusePolicy, seen: Int, sameFrame: Int = 6, changed: Int = 0) -> [String] {
      failing(
        CowDeviceScene.judge(
          .init(
            policy: policy, writes: 6, seen: seen, sameFrame: sameFrame, firstLost: "", changedClones: changed, clones: 3)))
    }
    #expect(judge(.exclusive, seen: 6) == [])
    #expect(judge(.exclusive, seen: 5) == ["W4"])
    #expect(judge(.exclusive, seen: 6, sameFrame: 5) == ["W4"])
    #expect(judge(.refcount, seen: 0, sameFrame: 0) == [])
    #expect(judge(.refcount, seen: 6) == ["W4"])
    #expect(judge(.exclusive, seen: 6, changed: 1) == ["W5"])
  }

  @Test("K1/W5: memory, bytes and counts that are wrong are found") func clones() {
    let good = CowCloneScene.Counts(
      residentBefore: 40960, residentAfterClones: 40960, copiesByCloning: 0, residentAfterWrites: 81920, distinctFrames: 20,
      wrong: 0, checked: 30, left: [0, 0, 0, 0], pageSize: 4096, clones: 2)
    #expect(failing(CowCloneScene.judge(good)) == [])
    for (change, contract) in [
      ({ $0.residentAfterClones += 4096 }, "K1"), ({ $0.copiesByCloning = 1 }, "K1"), ({ $0.wrong = 1 }, "W5"),
      ({ $0.distinctFrames = 19 }, "K1"), ({ $0.left[1] = 1 }, "K1"), ({ $0.left[3] = 4096 }, "K1"),
    ] as [((inout CowCloneScene.Counts) -> Void, String)] {
      var counts = good
      change(&counts)
      #expect(failing(CowCloneScene.judge(counts)) == [contract])
    }
    #expect(CowCloneScene.judge(frames: 5, differing: []).holds)
    #expect(!CowCloneScene.judge(frames: 0, differing: []).holds)
    #expect(!CowCloneScene.judge(frames: 5, differing: [.init(frame: 1, ours: 2, kernel: 1)]).holds)
  }

  @Test("K1: a count that is not the kernel's is found", .enabled(if: geteuid() == 0, "/proc/kpagecount is root's"))
  func kernelCounts() throws {
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: 4)
    for page in 0..<4 { try region.store(UInt64(page), toByteOffset: page * region.pageSize) }
    func counts() throws -> (frames: Int, differing: [CowKernelCounts.Difference]) {
      switch try CowKernelCounts.compare([region]) {
      case .compared(let frames, let differing): (frames, differing)
      case .unreadable(let reason): try Test.cancel("\(reason)")
      }
    }
    let (frames, none) = try counts()
    #expect(frames == 4 && none == [])
    // A clone counts as a mapping of every page, which the kernel sees only when the page is touched.
    let clone = try region.clone()
    let differing = try counts().differing
    #expect(differing.map(\.ours) == [2, 2, 2, 2] && differing.map(\.kernel) == [1, 1, 1, 1])
    try clone.unmap()
    try space.close()
  }

  @Test("The picture: frames are grouped by who has them, and each is counted once") func pictures() throws {
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: 8)
    let clone = try region.clone()
    var ledger = CowLedger()
    ledger.note("shared", [("one", try region.frameState(0)), ("two", try clone.frameState(0))])
    try clone.store(1, toByteOffset: 0)
    ledger.note("written", [("one", try region.frameState(0)), ("two", try clone.frameState(0))])
    #expect(ledger.steps.map { $0.rows.map(\.holders) } == [[["one", "two"]], [["one"], ["two"]]])
    let lines = ledger.lines(DemoStage(colours: .none, width: 80))
    #expect(lines.count == 4 && lines[1].hasSuffix("one ─ two"))

    let map = try CowFrameMap([region, clone])
    #expect(map.sharers[0].filter { $0 == 1 }.count == map.sharers[1].filter { $0 == 1 }.count)
    #expect(map.frameCounts.reduce(0, +) == map.distinctFrames)
    #expect(map.frameCounts[0] + 2 * map.frameCounts[1] == 16)
    for colours in [Screen.Colours.none, .palette256, .full] {
      #expect(map.picture(DemoStage(colours: colours, width: 80)).count == (colours == .none ? 3 : 2))
    }
    try space.close()
  }
}
