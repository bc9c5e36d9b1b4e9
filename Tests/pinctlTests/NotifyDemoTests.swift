import Foundation
import PinKit
import Testing

@testable import Demos

@Suite("pinctl demo notify", .serialized) struct NotifyDemoTests {
  @Test("N2/N4/N5/N7/N8/N9/N10/N12: every claim holds, and the JSON says so")
  func claims() throws {
    let (code, output, error) = try pinctl(["demo", "notify", "--json", "--breaks", "12"])
    #expect(code == 0, "\(error)")
    let result = try JSONDecoder().decode(DemoResult.self, from: output)
    #expect(result.demo == "notify")
    #expect(result.ok)
    for claim in result.claims { #expect(claim.holds, "\(claim.claim): \(claim.evidence)") }
    #expect(
      Set(result.claims.map(\.contract)).isSuperset(of: ["N2", "N4", "N5", "N7", "N8", "N9", "N10", "N12"]))
    #expect(Set(result.claims.map { "\($0.contract) \($0.claim)" }).count == result.claims.count)
    let asked = Set(result.measurements.map(\.subject)).union(result.skipped.map(\.subject))
    #expect(asked.isSuperset(of: ["handlerThread", "inPlace", "mprotect"]))
  }

  @Test("Plain output has no escape codes, and the timelines")
  func drawsPlainly() throws {
    let (code, output, _) = try pinctl(["demo", "notify", "--breaks", "1"])
    let shown = String(decoding: output, as: UTF8.self)
    #expect(code == 0)
    #expect(!shown.contains("\u{1b}"))
    for word in ["page table", "cleared", "set: new frame", "would block", "last read of 1", "first read of 2", "is down"] {
      #expect(shown.contains(word))
    }
    #expect(shown.contains("✓ holds  N5"))
  }

  @Test("Numbers that make no sense are refused, code 64") func refuses() throws {
    for breaks in ["0", "10001", "many"] { #expect(try pinctl(["demo", "notify", "--breaks", breaks]).code == 64) }
  }
}

@Suite("What the notify demo claims") struct NotifyJudgeTests {
  private typealias Kind = NotifyEvent.Kind

  /// The claims that do not hold: their contract, and a word of each.
  private func failing(_ claims: [Claim]) -> [String] { claims.filter { !$0.holds }.map(\.contract) }

  private func counts(_ mappings: Int, pins: Int = 0) -> FrameCounts {
    FrameCounts(references: mappings + 1 + pins * FrameCounts.pinBias, mappings: mappings)
  }

  private func events(_ list: [(String, Kind)]) -> [NotifyEvent] {
    list.enumerated().map { NotifyEvent(time: UInt64($0.offset), actor: $0.element.0, kind: $0.element.1) }
  }

  /// One refusal, then a break.
  private var good: NotifyBreak.Record {
    let (first, second, table) = (NotifyBreak.first, NotifyBreak.second, NotifyBreak.table)
    var round = NotifyBreak.Round()
    round.events = events([
      (first, .start), (second, .refused), (first, .end), (first, .start), (second, .start), (table, .cleared),
      (first, .invalidate), (second, .invalidate), (table, .set), (first, .end), (second, .end),
    ])
    round.counts = [
      (.start, counts(2)), (.end, counts(2)), (.start, counts(2)), (.invalidate, counts(2)), (.end, counts(1)),
    ]
    round.refusals = 1
    round.hasNewFrame = true
    round.wasTranslated = true
    round.isKept = true
    var record = NotifyBreak.Record(mechanism: .handlerThread, rounds: [round])
    record.reader.reads = 100
    record.reader.changes = 2
    return record
  }

  private func broken(_ change: (inout NotifyBreak.Record) -> Void) -> [String] {
    var record = good
    change(&record)
    return failing(NotifyBreakScene.judge(record))
  }

  @Test("A faultless break is accepted, and none at all proves nothing") func accepts() {
    #expect(broken { _ in } == [])
    #expect(Set(broken { $0.rounds = [] }) == ["N4", "N5", "N9", "N12", "W5"])
  }

  @Test("N5: calls and steps in another order are found") func order() {
    // Set before invalidate; cleared before the start; an end too early; a step that is missing, or done twice.
    #expect(broken { $0.rounds[0].events.swapAt(7, 8) } == ["N5"])
    #expect(broken { $0.rounds[0].events.swapAt(4, 5) } == ["N5"])
    #expect(broken { $0.rounds[0].events.swapAt(8, 9) } == ["N5"])
    #expect(broken { $0.rounds[0].events.remove(at: 8) } == ["N5"])
    #expect(broken { $0.rounds[0].events.insert($0.rounds[0].events[5], at: 6) } == ["N5"])
    #expect(broken { $0.rounds[0].events.remove(at: 7) } == ["N5"])
    #expect(broken { $0.rounds[0].events[8].time = 0 } == ["N5"])
  }

  @Test("N9: a start without its end, or an end for who refused, is found") func pairs() {
    #expect(broken { $0.rounds[0].events.remove(at: 2) } == ["N9"])
    #expect(broken { $0.rounds[0].events.removeLast() }.contains("N9"))
    #expect(
      broken { $0.rounds[0].events.insert(NotifyEvent(time: 2, actor: NotifyBreak.second, kind: .end), at: 2) } == ["N9"])
    #expect(broken { $0.rounds[0].refusals = 2 } == ["N9"])
  }

  @Test("N4/N9: a page that changed although somebody refused, or had no reference at the start, is found")
  func frames() {
    #expect(Set(broken { $0.rounds[0].counts[0].counts = counts(1) }) == ["N4", "N9"])
    #expect(broken { $0.rounds[0].counts[3].counts = counts(1) } == ["N9"])
    #expect(broken { $0.rounds[0].counts[4].counts = counts(2) } == ["N9"])
    #expect(broken { $0.rounds[0].counts[2].counts.references = 2 } == ["N9"])
    let cleared = NotifyEvent(time: 0, actor: NotifyBreak.table, kind: .cleared)
    #expect(broken { $0.rounds[0].events.insert(cleared, at: 0) }.contains("N4"))
  }

  @Test("N5/N12/W5: a reader that goes back, a pin and a lost page are found") func readers() {
    #expect(broken { $0.reader.backwards = 1 } == ["N5"])
    #expect(broken { $0.reader.stale = 1 } == ["N5"])
    #expect(broken { $0.reader.changes = 1 } == ["N5"])
    #expect(broken { $0.reader.failure = "it" } == ["N5"])
    #expect(broken { $0.rounds[0].counts[1].counts = counts(2, pins: 1) } == ["N12"])
    #expect(broken { $0.rounds[0].wasTranslated = false } == ["N12"])
    #expect(broken { $0.rounds[0].isKept = false } == ["W5"])
  }

  @Test("N2/N7/N9/N10: a collection that told too often, or lost what was written, is found") func windows() {
    let (subscriber, middle) = (NotifyWindowScene.recorder, NotifyWindowScene.middle)
    var calls = events([(subscriber, .start), (subscriber, .invalidate), (subscriber, .end), (middle, .invalidate)])
    for index in calls.indices { calls[index].pages = 4..<60 }
    let good = NotifyWindowScene.Record(
      events: calls, isUp: [true, true, false, false, true], addresses: [4096], isKept: true, written: Set(20..<40),
      collected: [4..<8, 20..<42], lateMark: .tooLate, operations: [("collect", calls)])
    func broken(_ change: (inout NotifyWindowScene.Record) -> Void) -> [String] {
      var record = good
      change(&record)
      return failing(NotifyWindowScene.judge(record))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.events += events([(subscriber, .start), (subscriber, .end)]) } == ["N10"])
    #expect(broken { $0.events[0].pages = 4..<30 } == ["N10"])
    #expect(broken { $0.operations[0].events.append(calls[3]) } == ["N7"])
    #expect(broken { $0.operations[0].events.removeLast() } == ["N7"])
    #expect(broken { $0.collected = [4..<7, 20..<42] } == ["N2"])
    #expect(broken { $0.collected = [4..<8, 20..<41] } == ["N2"])
    #expect(broken { $0.lateMark = nil } == ["N2"])
    #expect(broken { $0.isUp[2] = true } == ["N9"])
    #expect(broken { $0.addresses.insert(8192) } == ["N9"])
    #expect(broken { $0.isKept = false } == ["N9"])
  }

  @Test("N8/N12: a call after removal, and a release that comes twice, late or to the wrong one, are found")
  func removals() {
    let good = NotifyRemovalScene.Record(
      own: events([("own", .start)]), other: [], changes: 4, callbackEnded: 100, removed: 120, callsAfter: 0,
      releases: ["a": 1, "b": 1], residentAtRelease: 4096, removedReleases: 0)
    func broken(_ change: (inout NotifyRemovalScene.Record) -> Void) -> [String] {
      var record = good
      change(&record)
      return failing(NotifyRemovalScene.judge(record))
    }
    #expect(broken { _ in } == [])
    #expect(broken { $0.own += events([("own", .end)]) } == ["N8"])
    #expect(broken { $0.other = events([("other", .start)]) } == ["N8"])
    #expect(broken { $0.removed = 99 } == ["N8"])
    #expect(broken { $0.callsAfter = 1 } == ["N8"])
    #expect(broken { $0.releases["a"] = 2 } == ["N12"])
    #expect(broken { $0.releases["a"] = nil } == ["N12"])
    #expect(broken { $0.residentAtRelease = 0 } == ["N12"])
    #expect(broken { $0.removedReleases = 1 } == ["N12"])
  }
}
