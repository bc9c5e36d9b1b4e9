import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Pages that say which version they are of, at both ends: the first word is written first. The bytes of one moment have the same version at
/// both ends, or are one behind at the last.
private struct Versions {
  static func write(_ version: UInt64, _ region: Region, _ page: Int) {
    let start = region.addresses.start + UInt(page * 4096)
    ct_store_word(UInt64(start), version)
    ct_store_word(UInt64(start) + 4088, version)
  }

  static func read(_ page: [UInt8]) -> (first: UInt64, last: UInt64) {
    unsafe page.withUnsafeBytes { bytes in
      unsafe (
        bytes.loadUnaligned(fromByteOffset: 0, as: UInt64.self), bytes.loadUnaligned(fromByteOffset: 4088, as: UInt64.self)
      )
    }
  }

  static func check(_ page: [UInt8], _ what: String, _ number: Int, atLeast: UInt64 = 0, _ findings: Findings) {
    Tally.add(.checks, 2)
    let (first, last) = read(page)
    if first != last, first != last + 1 { findings.note("\(what): page \(number) is torn: \(first), \(last)") }
    if first < atLeast { findings.note("\(what): page \(number) has version \(first), \(atLeast) was written before") }
  }
}

@Suite("Regions over a store, raced") struct FileStressTests {
  private static let pages = 48
  private static let writers = 3

  private final class Race: Sendable {
    let region: Region
    let store: UnrulyStore
    let findings = Findings()
    let isOver = Shared()
    /// How often each of the others has been through.
    let flushes = Shared(), reclaims = Shared(), copies = Shared()
    var isEnough: Bool { flushes.value >= 40 && reclaims.value >= 40 && copies.value >= 40 }
    /// What each page's writer has finished.
    let done = (0..<FileStressTests.pages).map { _ in Shared() }
    init(_ region: Region, _ store: UnrulyStore) {
      self.region = region
      self.store = store
    }
    var versions: [UInt64] { done.map { UInt64($0.value) } }

    func write(_ writer: Int, seed: UInt64) {
      var random = SeededRandom(seed: Seed.base &+ seed)
      let mine = (0..<FileStressTests.pages).filter { $0 % FileStressTests.writers == writer }
      while !isEnough {
        guard let page = mine.randomElement(using: &random) else { return }
        let version = UInt64(done[page].value) + 1
        Versions.write(version, region, page)
        done[page].value = Int(version)
        Tally.add(.operations)
        if random.next() % 8 == 0 {
          let other = Int.random(in: 0..<FileStressTests.pages, using: &random)
          let before = UInt64(done[other].value)
          let seen = ct_load_word(UInt64(region.addresses.start) + UInt64(other * 4096))
          if seen < before { findings.note("page \(other) read \(seen) after \(before) was written") }
        }
      }
    }

    func flush() {
      while isOver.value == 0 {
        let before = versions
        do throws(PinError) { try region.flush() } catch {
          if error.code != .inputOutput { findings.note("\(error)") }
          continue
        }
        flushes.add()
        for page in 0..<FileStressTests.pages {
          Versions.check(store.durablePage(page), "durable", page, atLeast: before[page], findings)
        }
      }
    }

    func reclaim() {
      var random = SeededRandom(seed: Seed.of(5))
      while isOver.value == 0 {
        let start = Int.random(in: 0..<FileStressTests.pages, using: &random)
        do throws(PinError) { if try region.reclaim(start..<FileStressTests.pages) > 0 { reclaims.add() } } catch {
          findings.note("\(error)")
        }
        Kernel.pause(nanoseconds: 300_000)
      }
    }

    func copy() {
      var random = SeededRandom(seed: Seed.of(7))
      while isOver.value == 0 {
        do {
          let before = versions
          if random.next() % 2 == 0 {
            let snapshot = try region.snapshot()
            let after = versions
            for _ in 0..<20 {
              let page = Int.random(in: 0..<FileStressTests.pages, using: &random)
              let bytes = try snapshot.read(page)
              Versions.check(bytes, "snapshot", page, atLeast: before[page], findings)
              if Versions.read(bytes).last > after[page] + 1 { findings.note("snapshot: page \(page) is of later") }
            }
            snapshot.close()
          } else {
            let clone = try region.clone()
            for page in 0..<FileStressTests.pages {
              var bytes = [UInt8](repeating: 0, count: 4096)
              try unsafe bytes.withUnsafeMutableBytes { try unsafe clone.copy(fromByteOffset: page * 4096, into: $0) }
              Versions.check(bytes, "clone", page, atLeast: before[page], findings)
            }
            try clone.unmap()
          }
          copies.add()
        } catch { findings.note("\(error)") }
      }
    }
  }

  @Test(
    "W5, W6, P3: writers against flush, reclaim, snapshot and clone, over a store that is slow and fails now and then",
    arguments: 1...3)
  func race(seed: UInt64) throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: Self.pages) { _ in 0 }
    let dice = Atomic<UInt64>(Seed.base &+ seed)
    store.set {
      $0.writing = { _ throws(PinError) in
        let roll = dice.wrappingAdd(0x9E37_79B9_7F4A_7C15, ordering: .relaxed).newValue >> 32 % 40
        if roll == 0 { throw .broken }
        if roll < 4 { Kernel.pause(nanoseconds: 200_000) }
      }
      $0.flushing = { () throws(PinError) in
        if dice.wrappingAdd(0x9E37_79B9_7F4A_7C15, ordering: .relaxed).newValue >> 32 % 10 == 0 { throw .broken }
      }
      $0.isQuick = seed != 2
    }
    let region = try space.map(.file(store), pages: Self.pages)
    let race = Race(region, store)
    let helpers = [TestThread { race.flush() }, TestThread { race.reclaim() }, TestThread { race.copy() }]
    try onThreads(Self.writers) { race.write($0, seed: seed &* 100 &+ UInt64($0)) }
    race.isOver.value = 1
    for helper in helpers { try helper.join() }
    store.set {
      $0.writing = { _ throws(PinError) in }
      $0.flushing = { () throws(PinError) in }
    }
    let last = race.versions
    try region.unmap()
    for page in 0..<Self.pages {
      let (first, second) = Versions.read(store.durablePage(page))
      if first != last[page] || second != last[page] {
        race.findings.note("at the end page \(page) has \(first), \(second) instead of \(last[page])")
      }
    }
    #expect(race.findings.all == [])
    let statistics = space.statistics
    #expect(
      statistics.reclaimedPages > 0 && statistics.writtenPages > 0
        && statistics.suppliedPages > statistics.reclaimedPages / 2)
    try space.close()
  }
}
