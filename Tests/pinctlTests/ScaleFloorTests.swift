import CFloor
import Foundation
import Glibc
import PinKit
import Synchronization
import Testing

@testable import Topics

extension BenchTests {
  /// Among the bench's, which run one after the other: there is one floor in a process.
  @Suite("The threads and floors of pinctl bench scale") struct ScaleFloorTests {
    @Test("Rows go up to as many threads as there are cores, and each comparison is made once")
    func counts() {
      #expect(ScaleTopic.threadCounts(cores: 1) == [1])
      #expect(ScaleTopic.threadCounts(cores: 2) == [1, 2])
      #expect(ScaleTopic.threadCounts(cores: 6) == [1, 2, 4, 6])
      #expect(ScaleTopic.threadCounts(cores: 16) == [1, 2, 4, 8, 16])
      for cores in [1, 2, 6, 16] {
        let names = ScaleTopic.rows(cores: cores).map(\.name)
        #expect(Set(names).count == names.count)
        #expect(names.contains("scale/load") && names.contains("scale/load-\(cores)"))
        #expect(names.contains("scale/first-write-thread") && !names.contains("scale/first-write-thread-\(cores)"))
      }
    }

    private final class Log: Sendable {
      let prepared = Atomic<Int>(0)
      let early = Atomic<Int>(0)
      let seen = Mutex<[Int]>([])
    }

    @Test("Threads start once all are prepared, each with its number, and the slowest counts")
    func together() throws {
      let log = Log()
      let time = try FloorTeam.time(4, calls: 10) { _ in
        log.prepared.add(1, ordering: .sequentiallyConsistent)
      } _: { number in
        if log.prepared.load(ordering: .sequentiallyConsistent) < 4 { log.early.add(1, ordering: .relaxed) }
        log.seen.withLock { $0.append(number) }
        let start = nanoseconds()
        while number == 3, nanoseconds() - start < 5_000_000 {}
      }
      #expect(log.early.load(ordering: .relaxed) == 0)
      #expect(log.seen.withLock { $0 }.sorted() == [0, 1, 2, 3])
      #expect(time >= 500_000)
    }

    @Test("A thread that fails makes no figure, and nobody waits for it", arguments: [0, 1])
    func failing(number: Int) {
      struct Failure: Error {}
      #expect(throws: Failure.self) {
        try FloorTeam.time(2, calls: 1) {
          if $0 == number { throw Failure() }
        } _: { _ in
        }
      }
      #expect(throws: Failure.self) { try FloorTeam.time(2, calls: 1) { if $0 == number { throw Failure() } } }
    }

    static let mechanisms = [cfloor_thread, cfloor_in_place, cfloor_async_scan]

    @Test(
      "A floor in parts is as many mappings, every page of which can be written, by several threads; and one again afterwards",
      .enabled(
        if: (try? Userfaultfd.availableFeatures().contains(.wpAsync)) == true,
        "needs a userfaultfd with WP_ASYNC (Linux 6.7)"),
      arguments: mechanisms, [1, 4])
    func parts(mechanism: cfloor_mechanism, count: Int) throws {
      let memory = FloorMemory(pages: 64)
      let shards = unsafe cfloor_shards_start(memory.base, memory.pages, count, CInt(mechanism.rawValue))
      #expect(isMapped(memory, in: count))
      _ = try memory.write(PageOrder.random(32), threads: 2)
      unsafe cfloor_shards_stop(shards)
      #expect(isMapped(memory, in: 1))
      for page in 0..<memory.pages {
        let value = unsafe UnsafePointer<UInt64>(bitPattern: UInt(memory.base) + UInt(page * 4096))!.pointee
        #expect(value == UInt64(PageOrder.random(32).firstIndex(of: UInt32(page % 32))!))
      }
    }

    /// How many lines of /proc/self/maps the memory has.
    /// Whether the memory is in so many mappings. While others change theirs, what the kernel lists may have some twice, or lack some, so it is
    /// asked again.
    private func isMapped(_ memory: FloorMemory, in count: Int) -> Bool {
      for _ in 0..<1000 {
        // A signal ends the read, too.
        if (try? mappings(of: memory)) == count { return true }
        sched_yield()
      }
      return false
    }

    private func mappings(of memory: FloorMemory) throws -> Int {
      let (start, end) = (memory.base, memory.base + UInt64(memory.pages * 4096))
      // By a file handle: a large list is read to its end, however long the file says that it is.
      let list = try FileHandle(forReadingFrom: URL(fileURLWithPath: "/proc/self/maps")).readToEnd() ?? Data()
      return String(decoding: list, as: UTF8.self).split(separator: "\n").count { line in
        let ends = line.prefix { $0 != " " }.split(separator: "-").compactMap { UInt64($0, radix: 16) }
        return ends.count == 2 && ends[0] < end && ends[1] > start
      }
    }

    @Test("The parts' signal handler leaves faults on other memory to whoever watches that")
    func floorsKeepToThemselves() throws {
      let space = try AddressSpace()
      let region = try space.map(.anonymous, pages: 8)
      let tracker = try region.trackWrites(.inPlace)
      let memory = FloorMemory(pages: 8)
      let shards = unsafe cfloor_shards_start(memory.base, memory.pages, 2, CInt(cfloor_in_place.rawValue))
      try region.store(UInt8(1), toByteOffset: 3 * 4096)
      unsafe cfloor_shards_stop(shards)
      #expect(try tracker.collect().runs == [3..<4])
      try space.close()
    }
  }
}
