import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Two pages change frame while they are written; who sees the second write through whatever page table sees the first one, too.
/// `PINKIT_ORDER_ROUNDS` sets how many rounds there are.
@Suite("Memory order", .serialized) struct MemoryOrderTests {
  @Test(
    "N5: when the new frame is mapped nobody has the old one any more, and nobody finds it",
    arguments: Mechanisms.synchronous)
  func steps(_ mechanism: WriteTracking.Mechanism) async {
    await #expect(processExitsWith: .success) { [mechanism = mechanism as WriteTracking.Mechanism] in
      ct_deadline(60)
      let space = try AddressSpace.forTests()
      let (region, clone) = try sharedPair(space, mechanism)
      let mirror = try SecondaryMMU(clone)
      let findings = Findings()
      // The second page has its own frame, and the mirror knows both.
      try clone.setWord(9, 1, 1)
      for page in [3, 9] { _ = try mirror.word(page, 1) }
      let isOver = Shared()
      let looks = Shared()
      let reader = TestThread {
        while isOver.value == 0 {
          let second = try mirror.word(9, 1)
          atomicMemoryFence(ordering: .acquiring)
          let first = try mirror.word(3, 1)
          if second == 7, first != 7 { findings.note("the mirror read \(first) after the new value") }
          looks.add()
        }
      }
      check(spin { looks.value > 10 }, "nobody reads")
      TestHooks.set(.copied) { page in
        if mirror.isTranslated(page) { findings.note("a translation outlived the start") }
      }
      TestHooks.set(.mapped) { page in
        if mirror.isTranslated(page) { findings.note("the new frame is mapped, and the mirror has the old one") }
        if !clone.table[page].contains(.cleared) { findings.note("the new frame is mapped, and the old one is found") }
        // Another processor writes through the new mapping at once.
        ct_store_in_order(clone.address(3, 1), 7)
        ct_store_in_order(clone.address(9, 1), 7)
        yieldForAWhile(milliseconds: 3)
      }
      try clone.setWord(3, 0, 50)
      TestHooks.set(.mapped, nil)
      TestHooks.set(.copied, nil)
      check(spin { (try? mirror.word(3, 1)) == 7 }, "the new value is not seen")
      isOver.value = 1
      try reader.join()
      try check(region.word(3), is: 4)
      for finding in findings.all { Issue.record("\(finding)") }
      try space.close()
    }
  }

  @Test(
    "N5: no observer ever sees the new bytes of one page, and then the old ones of another",
    arguments: Mechanisms.synchronous)
  func observations(_ mechanism: WriteTracking.Mechanism) throws {
    let rounds = environmentNumber("PINKIT_ORDER_ROUNDS", or: 1500) / 3
    let run = try OrderRun(mechanism, rounds: rounds)
    try run.go()
    for finding in run.findings.all { Issue.record("\(finding) (\(mechanism))") }
    #expect(run.observations.value >= rounds * OrderRun.looks * 2)
    #expect(run.copies >= UInt64(rounds * OrderRun.pairs * 2))
  }
}

/// One region, cloned again and again: two writers break it away, two observers look.
private final class OrderRun: Sendable {
  static let pairs = 6
  static let looks = 350
  private static let stride = 8

  let findings = Findings()
  let observations = Shared()
  private let space: AddressSpace
  private let region: Region
  private let mirror: SecondaryMMU
  private let tracker: WriteTracker
  private let rounds: Int
  private let mechanism: WriteTracking.Mechanism
  private let begin = Barrier(5)
  private let end = Barrier(5)
  private let pair = Shared()

  init(_ mechanism: WriteTracking.Mechanism, rounds: Int) throws {
    space = try AddressSpace.forTests()
    region = try space.map(.pool, pages: Self.pairs * Self.stride)
    for page in 0..<region.pageCount { try region.setWord(page, 0, 0) }
    // Exact: no page is broken away for its neighbour's sake.
    tracker = try region.trackWrites(mechanism)
    mirror = try SecondaryMMU(region)
    self.mechanism = mechanism
    self.rounds = rounds
  }

  var copies: UInt64 { space.counters[.copies] }
  private static func pages(_ pair: Int) -> (Int, Int) { (pair * stride, pair * stride + 4) }

  private func write(_ word: Int) {
    for round in 1...max(1, rounds) {
      begin.wait()
      for number in 0..<Self.pairs {
        let (first, second) = Self.pages(number)
        pair.value = number
        ct_store_in_order(region.address(first, word), UInt64(round))
        ct_store_in_order(region.address(second, word), UInt64(round))
      }
      end.wait()
    }
  }

  private func read(_ page: Int, _ word: Int, byMirror: Bool) throws -> UInt64 {
    if byMirror { return try mirror.word(page, word) }
    return try unsafe region.withUnsafeMutableBytes {
      unsafe $0.load(fromByteOffset: page * 4096 + word * 8, as: UInt64.self)
    }
  }

  private func observe(_ index: Int) throws {
    var last: [[UInt64]] = Array(repeating: [0, 0, 0, 0], count: Self.pairs)
    for _ in 0..<rounds {
      begin.wait()
      for look in 0..<Self.looks {
        let number = pair.value
        let word = look & 1
        let (first, second) = Self.pages(number)
        let seen = try read(second, word, byMirror: index == 0 || look & 2 == 0)
        atomicMemoryFence(ordering: .acquiring)
        let before = try read(first, word, byMirror: index == 0 || look & 4 == 0)
        if before < seen { findings.note("pair \(number), word \(word): \(seen) was seen, and then \(before)") }
        if seen < last[number][word] || before < last[number][word + 2] {
          findings.note("pair \(number), word \(word): \(seen), \(before) after \(last[number])")
        }
        (last[number][word], last[number][word + 2]) = (seen, before)
      }
      observations.add(Self.looks)
      end.wait()
    }
  }

  func go() throws {
    let threads =
      [0, 1].map { word in TestThread { [self] in write(word) } }
      + [0, 1].map { index in
        TestThread { [self] in
          defer { abandon() }
          try observe(index)
        }
      }
    defer { abandon() }
    for round in 1...max(1, rounds) {
      let clone = try region.clone(mechanism: mechanism)
      begin.wait()
      end.wait()
      if round % 16 == 0 {
        let other = try SecondaryMMU(clone)
        for number in 0..<Self.pairs where try other.word(Self.pages(number).0) != UInt64(round - 1) {
          findings.note("the clone of round \(round) holds \(try other.word(Self.pages(number).0))")
        }
      }
      try clone.unmap()
    }
    for thread in threads { try thread.join() }
    try tracker.stop()
    try space.close()
  }

  private func abandon() {
    begin.abandon()
    end.abandon()
  }
}
