import CTestSupport
import Foundation
import Glibc
import PinKit
import Testing

@testable import Demos

@Suite(
  "pinctl demo seal", .serialized,
  .enabled(if: ct_has_sanitizer() == 0, "a sanitizer keeps copies, and maps terabytes that would have to be searched"))
struct SealDemoTests {
  @Test("S1/S2/S4/S5: every claim holds, and the JSON says so")
  func claims() throws {
    let (code, output, error) = try pinctl(["demo", "seal", "--json", "--keys", "12"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "seal")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(Set(result.claims.map(\.contract)) == ["S1", "S2", "S4", "S5"])
    let shown = result.claims.map(\.claim).joined(separator: "\n") + result.skipped.map(\.subject).joined(separator: "\n")
    for part in ["over-read", "/proc/PID/mem", "process_vm_readv", "core dump", "SIGBUS", "busy", "sealed again"] {
      #expect(shown.contains(part), "\(part)")
    }
  }

  @Test("Plain output has no escape codes, and the map of pages") func drawsPlainly() throws {
    let (code, output, _) = try pinctl(["demo", "seal", "--keys", "10"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    #expect(shown.contains("··········  all are sealed\n") && shown.contains("█·········  key 1 is used"))
    #expect(shown.contains("✓ holds  S5"))
  }

  @Test("Numbers that make no sense are refused, code 64") func refuses() throws {
    for keys in ["7", "257", "many"] { #expect(try pinctl(["demo", "seal", "--keys", keys]).code == 64) }
  }
}

@Suite("What the seal demo claims") struct SealJudgeTests {
  private func failing(_ claims: [Claim]) -> [String] { claims.filter { !$0.holds }.map(\.contract) }

  @Test("S5/S1: an over-read that has a key, and one that proves nothing, are found") func overreads() {
    let good = SealOverreadScene.Outcome(
      keys: 8, plainFound: 8, plainBytes: 36_864, sealedFound: 0, sealedBytes: 4096, opened: 0, asked: 36_864)
    func broken(_ change: (inout SealOverreadScene.Outcome) -> Void) -> [String] {
      var outcome = good
      change(&outcome)
      return failing(SealOverreadScene.judge(outcome))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.sealedFound = 1 } == ["S5"])
    #expect(broken { $0.plainFound = 7 } == ["S5"], "a search that does not find what is there")
    #expect(broken { $0.sealedBytes = 36_864 } == ["S5"])
    #expect(broken { $0.opened = 1 } == ["S1"])
    #expect(broken { $0 = .init() } == ["S5", "S1"])
  }

  @Test("S1/S5/S4: a use that opens more, a page that stays open, and one that moved are found") func uses() {
    let good = SealUseScene.Outcome(
      uses: 6, alone: 6, whole: 6, isSealedInTheEnd: true, seconds: 0.5, moved: 0, plainFrames: 0)
    func broken(_ change: (inout SealUseScene.Outcome) -> Void) -> [String] {
      var outcome = good
      change(&outcome)
      return failing(SealUseScene.judge(outcome))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.alone = 5 } == ["S1"])
    #expect(broken { $0.whole = 5 } == ["S1"])
    #expect(broken { $0.isSealedInTheEnd = false } == ["S5"])
    #expect(broken { $0.moved = 1 } == ["S4"])
    #expect(broken { $0.plainFrames = 1 } == ["S4"])
    #expect(broken { $0 = .init() } == ["S1", "S5", "S4"])
  }

  @Test("S2/S1: a page that was sealed under its user, changed, or never sealed again is found") func pending() {
    let good = SealPendingScene.Attempt(user: "a pin", code: .busy, changed: 0, sealsLater: true)
    func broken(_ change: (inout SealPendingScene.Attempt) -> Void) -> [String] {
      var attempt = good
      change(&attempt)
      return failing(SealPendingScene.judge([good, attempt]))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.code = nil } == ["S2"])
    #expect(broken { $0.code = .timedOut } == ["S2"])
    #expect(broken { $0.changed = 1 } == ["S2"])
    #expect(broken { $0.sealsLater = false } == ["S1"])
    #expect(failing(SealPendingScene.judge([])) == ["S2", "S1"])
  }

  @Test("S5: a key that somebody finds is found, and so is a search that finds nothing at all") func readers() {
    let good = SealReaderScene.Look(way: "it", keys: 8, before: 8, after: 0, sawCanary: true, bytes: 4096)
    func broken(_ change: (inout SealReaderScene.Look) -> Void) -> [String] {
      var look = good
      change(&look)
      return failing(SealReaderScene.judge([look]))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.before = nil } == [], "a core dump ends what it looks at")
    #expect(broken { $0.before = 0 } == ["S5"])
    #expect(broken { $0.after = 1 } == ["S5"])
    #expect(broken { $0.sawCanary = false } == ["S5"])
  }

  @Test("S5: a tampered page that opens, or can be read, is found") func tampering() {
    let good = SealTamperScene.Outcome(answer: "tampered with", again: "tampered with", signal: SIGBUS)
    func broken(_ change: (inout SealTamperScene.Outcome) -> Void) -> Int {
      var outcome = good
      change(&outcome)
      return failing(SealTamperScene.judge(outcome)).count
    }
    #expect(broken { _ in } == 0)
    #expect(broken { $0.answer = "opened" } == 1)
    #expect(broken { $0.again = "opened" } == 1)
    #expect(broken { $0.again = nil } == 1)
    #expect(broken { $0.signal = nil } == 1)
    #expect(broken { $0.signal = SIGKILL } == 1)
  }

  @Test("Needles travel masked, and find themselves in others' bytes only as often as they are there") func needles() throws
  {
    let needles = SealNeedles(count: 9)
    let copy = try #require(SealNeedles(needles.text))
    #expect(copy.masked == needles.masked && copy.mask == needles.mask)
    #expect(SealNeedles("") == nil && SealNeedles("zz") == nil && SealNeedles("07ab") == nil)
    var bytes = [UInt8](repeating: 1, count: 200)
    for (index, byte) in needles.masked[4].enumerated() {
      bytes[3 + index] = byte ^ needles.mask
      bytes[168 + index] = byte ^ needles.mask
    }
    #expect(unsafe bytes.withUnsafeBytes { unsafe needles.found(in: $0) } == [4, 4])
    #expect(unsafe bytes[..<199].withUnsafeBytes { unsafe needles.found(in: $0) } == [4])
  }
}
