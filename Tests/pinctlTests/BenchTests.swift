import ArgumentParser
import CFloor
import Foundation
import PinKit
import Testing
import Topics

@testable import pinctl

@Suite("pinctl bench", .serialized)
struct BenchTests {
  @Test("Options reach the command, and an unknown topic is refused by name")
  func parsing() throws {
    let bench = try #require(try Pinctl.parseAsRoot(["bench", "track", "--rounds", "3", "--json", "--quick"]) as? Bench)
    #expect(bench.topics == ["track"])
    #expect(bench.rounds == 3 && bench.json && bench.quick)
    #expect(throws: (any Error).self) { try Pinctl.parseAsRoot(["bench", "--rounds", "0"]) }
    do {
      _ = try Pinctl.parseAsRoot(["bench", "gardening"])
      Issue.record("an unknown topic was accepted")
    } catch {
      #expect(Pinctl.message(for: error).contains("gardening"))
    }
  }

  @Test("Every topic has rows, and no two rows have one name")
  func rows() {
    for topic in BenchTopics.all { #expect(!topic.rows.isEmpty, "\(topic.name)") }
    let names = BenchTopics.all.flatMap { $0.rows.map(\.name) }
    #expect(Set(names).count == names.count)
  }

  @Test(
    "A row measures both sides, and collects exactly what was written",
    .enabled(
      if: (try? Userfaultfd.availableFeatures().contains(.wpAsync)) == true,
      "needs a userfaultfd with WP_ASYNC (Linux 6.7)"),
    arguments: [
      "first-write/async", "collect/sync-one-percent", "arm/4k", "cow/reuse", "cow/break-in-place", "cow/break-sparse",
      "vring/checked", "clone/create-4k", "snapshot/pause-4k", "snapshot/pause-second", "snapshot/call-4k",
      "snapshot/call-second", "snapshot/stall-4k", "snapshot/writer", "snapshot/stream",
      "notify/none", "notify/one-of-100", "direct/read", "direct/two-readers", "mirror/translate-hit",
      "mirror/translate-miss", "mirror/translate-miss-in-place", "file/read-now", "file/writeback-store",
      "file/random-read", "file/random-read-mmap", "file/sequential-read-exact", "file/hops-cores", "file/writeback",
      "seal/page", "open/page", "seal/single", "open/fault", "pending/none-pin", "scale/load", "scale/load-1", "scale/store",
      "scale/pin", "scale/pin-1", "scale/snapshot-read", "scale/snapshot-read-1", "scale/mirror", "scale/mirror-1",
      "scale/first-write-thread", "scale/first-write-in-place", "scale/first-write-async",
      "scale/first-write-thread-sharded",
      "scale/first-write-thread-regions", "scale/missing-page", "scale/snapshot-writer", "scale/collect-busy",
      "scale/collect-busy-runs",
    ])
  func measuring(name: String) throws {
    let row = try #require(BenchTopics.all.flatMap { $0.rows }.first { $0.name == name })
    let result = try row.run(BenchPlan(rounds: 2, quick: true))
    // A writer may not have got its turn in so short a time on a busy machine.
    #expect(result.pinkit >= 0 && result.floor > 0)
    #expect(result.name == name && result.rounds == 2 && result.floorName == row.floorName)
  }

  @Test(
    "A floor's signal handler leaves faults on other memory to whoever watches that",
    arguments: [
      (cfloor_in_place, WriteTracking.Mechanism.inPlace), (cfloor_mprotect, .mprotect),
    ])
  func floorsKeepToThemselves(floor: cfloor_mechanism, mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace()
    let region = try space.map(.anonymous, pages: 8)
    let tracker = try region.trackWrites(mechanism)
    let base = cfloor_map(8, 0, 1)
    var time = 0.0
    let watch = unsafe cfloor_watch_start(base, 8, CInt(floor.rawValue), 1, &time)
    try region.store(UInt8(1), toByteOffset: 3 * 4096)
    unsafe cfloor_watch_stop(watch)
    cfloor_unmap(base, 8)
    #expect(try tracker.collect().runs == [3..<4])
    try space.close()
  }

  static var sample: BenchReport {
    var report = BenchReport()
    report.entries = [
      (
        .ratio(1.1),
        BenchResult(name: "kept", unit: "ns/page", pinkit: 105, floor: 100, floorName: "x", rounds: 7)
      ),
      (.ratio(1.1), BenchResult(name: "missed", unit: "ns/page", pinkit: 0.06, floor: 0.05, floorName: "x", rounds: 7)),
      (.value(500), BenchResult(name: "absolute", unit: "KiB", pinkit: 400, floor: 100, floorName: "x", rounds: 7)),
    ]
    return report
  }

  @Test("A goal is a ratio to the floor or a figure of its own")
  func goals() {
    #expect(Self.sample.entries.map { $0.result.meets($0.goal) } == [true, false, true])
  }

  @Test("A goal may be so much more than the floor")
  func added() {
    let result = BenchResult(name: "one", unit: "ns/op", pinkit: 430, floor: 400, floorName: "x", rounds: 7)
    #expect(result.meets(.added(30)) && !result.meets(.added(29)))
    var report = BenchReport()
    report.entries = [(.added(29), result)]
    #expect(report.table().contains("≤ floor + 29.0 ns/op  !"))
  }

  @Test("A row without a goal cannot miss it, and none is shown")
  func reportedOnly() {
    var report = BenchReport()
    let result = BenchResult(name: "sparse", unit: "ns/page", pinkit: 900, floor: 1, floorName: "x", rounds: 7)
    report.entries = [(.reported, result)]
    #expect(result.meets(.reported))
    #expect(!report.table().contains("≤") && !report.table().contains("!"))
  }

  @Test("JSON has the fields that scripts read")
  func json() throws {
    let object = try JSONSerialization.jsonObject(with: Data(try Self.sample.json().utf8)) as? [String: Any]
    let results = try #require(object?["results"] as? [[String: Any]])
    #expect(results.count == 3)
    for result in results {
      #expect(Set(result.keys) == ["name", "unit", "pinkit", "floor", "floorName", "ratio", "rounds"])
    }
    #expect(results[0]["ratio"] as? Double == 1.05)
  }

  @Test("The table is aligned, shows the goal beside the ratio and marks what missed it")
  func table() {
    let lines = Self.sample.table().split(separator: "\n").map(String.init)
    #expect(lines.count == 4)
    #expect(lines[1].contains("1.05  ≤ 1.10×"))
    #expect(lines.map { $0.contains("!") } == [false, false, true, false])
    let column = lines.map { line in line.range(of: "≤").map { line.distance(from: line.startIndex, to: $0.lowerBound) } }
    #expect(column[0] == nil && Set(column.dropFirst()).count == 1)
  }
}
