import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// A page has three pairs of words, each with one writer and one way to be written. The first word of a pair is written first.
private enum Pair: Int, CaseIterable {
  /// By the processor, through the region.
  case stored = 0
  /// By a device, through a short-term pin.
  case pinned = 1024
  /// By a secondary MMU.
  case mirrored = 2048

  func address(_ page: UInt64) -> (first: UInt64, last: UInt64) { (page + UInt64(rawValue), page + UInt64(rawValue) + 1008) }

  func write(_ version: UInt64, at page: UInt64) {
    ct_store_word(address(page).first, version)
    ct_store_word(address(page).last, version)
  }

  func read(_ page: [UInt8]) -> (first: UInt64, last: UInt64) {
    unsafe page.withUnsafeBytes { bytes in
      unsafe (
        bytes.loadUnaligned(fromByteOffset: rawValue, as: UInt64.self),
        bytes.loadUnaligned(fromByteOffset: rawValue + 1008, as: UInt64.self)
      )
    }
  }

  /// Why the two words cannot be of one moment; a device that goes around every protection may write between two looks.
  func flaw(_ first: UInt64, _ last: UInt64) -> Bool {
    switch self {
    case .stored: first != last && first != last + 1
    case .pinned: false
    case .mirrored: first != last
    }
  }
}

@Suite("Pins, mirrors, snapshots, clones, flush and reclaim of a store, raced") struct FileRaceTests {
  private static let pages = 24
  /// Nobody writes it, and each page has its own: what is found there else is a byte of another page, or of none.
  private static let quiet = 3500

  private final class Race: Sendable {
    let region: Region
    let store: UnrulyStore
    let findings = Findings()
    let isOver = Shared()
    let flushes = Shared(), reclaims = Shared(), copies = Shared(), pins = Shared(), mirrored = Shared(), reads = Shared()
    /// What was written, per pair and page, and what a flush has made durable of it.
    let done = Pair.allCases.map { _ in (0..<FileRaceTests.pages).map { _ in Shared() } }
    let durable = Pair.allCases.map { _ in (0..<FileRaceTests.pages).map { _ in Shared() } }

    init(_ region: Region, _ store: UnrulyStore) {
      self.region = region
      self.store = store
    }

    var isEnough: Bool {
      flushes.value >= 20 && reclaims.value >= 10 && copies.value >= 10 && pins.value >= 60 && mirrored.value >= 60
        && reads.value >= 60
    }
    var versions: [[UInt64]] { done.map { $0.map { UInt64($0.value) } } }

    func check(_ bytes: [UInt8], _ what: String, _ page: Int, atLeast: [[UInt64]], atMost: [[UInt64]]? = nil) {
      Tally.add(.checks, 2 * Pair.allCases.count)
      for (index, pair) in Pair.allCases.enumerated() {
        let (first, last) = pair.read(bytes)
        if pair.flaw(first, last) { findings.note("\(what): \(pair) of page \(page) is torn: \(first), \(last)") }
        let least = atLeast[index][page]
        if first < least || last < least {
          findings.note("\(what): \(pair) of page \(page) has \(first), \(last) after \(least)")
        }
        if let atMost, last > atMost[index][page] + 1 {
          findings.note("\(what): \(pair) of page \(page) is of later: \(last)")
        }
      }
      if bytes[FileRaceTests.quiet] != UInt8(page + 1) {
        findings.note("\(what): page \(page) has \(bytes[FileRaceTests.quiet]) where nobody wrote")
      }
    }

    /// Runs `body` again and again; `writes` go on until all have done enough.
    func loop(seed: UInt64, writes: Bool = false, _ body: (inout SeededRandom) throws -> Void) {
      var random = SeededRandom(seed: Seed.base &+ seed)
      while writes ? !isEnough && findings.isEmpty : isOver.value == 0 {
        do { try body(&random) } catch { findings.note("\(error)") }
        if writes { Tally.add(.operations) }
      }
    }

    func page(_ random: inout SeededRandom) -> Int { Int.random(in: 0..<FileRaceTests.pages, using: &random) }

    func store(_ random: inout SeededRandom) {
      let page = page(&random)
      let version = UInt64(done[0][page].value) + 1
      Pair.stored.write(version, at: UInt64(region.addresses.start) + UInt64(page * 4096))
      done[0][page].value = Int(version)
    }

    func pin(_ random: inout SeededRandom) throws {
      let first = page(&random)
      let pages = first..<min(first + Int.random(in: 1...3, using: &random), FileRaceTests.pages)
      do throws(PinError) {
        let pin = try region.pin(pages, random.next() % 3 == 0 ? [.write, .noWait] : .write)
        for _ in 0..<3 {
          for page in pin.pages {
            let version = UInt64(done[1][page].value) + 1
            Pair.pinned.write(version, at: UInt64(pin.start) + UInt64((page - pin.pages.lowerBound) * 4096))
            done[1][page].value = Int(version)
            if try !region.mayBePinned(page) { findings.note("page \(page) is pinned and does not say so") }
            if try !region.filePageState(page).isDirty { findings.note("page \(page) is pinned and clean") }
          }
          sched_yield()
        }
        pin.unpin()
        pins.add()
      } catch {
        if error.code != .wouldBlock { throw error }
      }
    }

    func mirror(_ mirror: SecondaryMMU, _ random: inout SeededRandom) throws {
      let page = page(&random)
      let version = UInt64(done[2][page].value) + 1
      try unsafe mirror.withBytes(of: page, for: .writing) { bytes in
        Pair.mirrored.write(version, at: UInt64(UInt(bitPattern: bytes.baseAddress!)))
      }
      done[2][page].value = Int(version)
      mirrored.add()
    }

    func read(_ window: DirectMapping, _ random: inout SeededRandom) throws {
      let before = versions
      let page = page(&random)
      var bytes = [UInt8](repeating: 0, count: 4096)
      if window.pages.contains(page), random.next() % 2 == 0 {
        try unsafe window.withBytes { all in
          let start = unsafe all.baseAddress! + (page - window.pages.lowerBound) * 4096
          unsafe bytes.withUnsafeMutableBytes {
            unsafe Memory.copy(UnsafeRawPointer(start), to: $0.baseAddress!, count: 4096)
          }
        }
      } else {
        let pin = try region.pin(page..<page + 1)
        let start = pin.start
        unsafe bytes.withUnsafeMutableBytes {
          unsafe Memory.copy(UnsafeRawPointer(bitPattern: start)!, to: $0.baseAddress!, count: 4096)
        }
        pin.unpin()
      }
      reads.add()
      if bytes[FileRaceTests.quiet] != UInt8(page + 1) {
        findings.note("read: page \(page) has \(bytes[FileRaceTests.quiet]) where nobody wrote")
      }
      for (index, pair) in Pair.allCases.enumerated() where pair.read(bytes).first < before[index][page] {
        findings.note("read: \(pair) of page \(page) has \(pair.read(bytes)) after \(before[index][page])")
      }
    }

    func flush() {
      let before = versions
      do throws(PinError) { try region.flush() } catch {
        if error.code != .inputOutput { findings.note("\(error)") }
        return
      }
      for (index, list) in before.enumerated() {
        for (page, version) in list.enumerated() { durable[index][page].value = Int(version) }
      }
      flushes.add()
    }

    /// The power fails: what is there is what the last flush left, or newer.
    func fail(_ random: inout SeededRandom) {
      let page = page(&random)
      let before = durable.map { $0.map { UInt64($0.value) } }
      check(store.durablePage(page), "durable", page, atLeast: before)
      Kernel.pause(nanoseconds: 100_000)
    }

    func copy(_ random: inout SeededRandom) throws {
      let before = versions
      if random.next() % 2 == 0 {
        let snapshot = try region.snapshot()
        let after = versions
        for page in 0..<FileRaceTests.pages {
          check(try snapshot.read(page), "snapshot", page, atLeast: before, atMost: after)
        }
        snapshot.close()
      } else {
        let made: Region
        do throws(PinError) { made = try region.clone() } catch {
          // It needs all pages, and the store could not read them.
          if error.code != .inputOutput { throw error }
          return
        }
        let clone = made
        let after = versions
        for page in 0..<FileRaceTests.pages {
          var bytes = [UInt8](repeating: 0, count: 4096)
          try unsafe bytes.withUnsafeMutableBytes { try unsafe clone.copy(fromByteOffset: page * 4096, into: $0) }
          check(bytes, "clone", page, atLeast: before, atMost: after)
        }
        try clone.unmap()
      }
      copies.add()
    }
  }

  /// Slow now and then, with reads that end short and leave other bytes in the buffer, and writes and flushes that fail.
  private static func unsettle(_ store: UnrulyStore, _ seed: UInt64) {
    let dice = Atomic<UInt64>(Seed.base &+ seed &* 77)
    let roll: @Sendable (UInt64) -> UInt64 = { sides in
      (dice.wrappingAdd(0x9E37_79B9_7F4A_7C15, ordering: .relaxed).newValue &* 0xBF58_476D_1CE4_E5B9) >> 33 % sides
    }
    store.set {
      $0.isShort = { pages in roll(4) == 0 && pages.count > 1 }
      $0.isShortNow = { _ in roll(3) == 0 }
      $0.reading = { _ throws(PinError) in if roll(6) == 0 { Kernel.pause(nanoseconds: 100_000) } }
      $0.granting = { _ throws(PinError) in if roll(10) == 0 { Kernel.pause(nanoseconds: 50_000) } }
      $0.writing = { _ throws(PinError) in
        let number = roll(40)
        if number == 0 { throw .broken }
        if number < 4 { Kernel.pause(nanoseconds: 150_000) }
      }
      $0.flushing = { () throws(PinError) in if roll(10) == 0 { throw .broken } }
      $0.isQuick = seed % 2 == 0
    }
  }

  @Test(
    "W5, W6, P3, P4, N12: raced against what was written, over a store that is slow, fails and reads short", arguments: 1...4
  )
  func race(seed: UInt64) throws {
    let space = try AddressSpace()
    let store = UnrulyStore(pages: Self.pages)
    let region = try space.map(.file(store), pages: Self.pages)
    for page in 0..<Self.pages {
      for pair in Pair.allCases { pair.write(0, at: UInt64(region.addresses.start) + UInt64(page * 4096)) }
    }
    try region.flush()
    Self.unsettle(store, seed)
    let race = Race(region, store)
    let mirror = try SecondaryMMU(region)
    let window = try DirectMapping(region, pages: 4..<8, for: .reading)
    let helpers = [
      TestThread { race.loop(seed: seed) { _ in race.flush() } },
      TestThread { race.loop(seed: seed + 1) { random in race.fail(&random) } },
      TestThread { race.loop(seed: seed + 2) { random in try race.copy(&random) } },
      TestThread { race.loop(seed: seed + 3) { random in try race.read(window, &random) } },
      TestThread {
        race.loop(seed: seed + 4) { random in
          if try region.reclaim(race.page(&random)..<Self.pages) > 0 { race.reclaims.add() }
          Kernel.pause(nanoseconds: 200_000)
        }
      },
    ]
    try onThreads(3) { thread in
      race.loop(seed: seed * 100 + UInt64(thread), writes: true) { random in
        switch thread {
        case 0: race.store(&random)
        case 1: try race.pin(&random)
        default: try race.mirror(mirror, &random)
        }
        if random.next() % 16 == 0 { sched_yield() }
      }
    }
    race.isOver.value = 1
    for helper in helpers { try helper.join() }
    mirror.close()
    window.close()
    store.set { $0 = UnrulyStore.Rules() }
    let last = race.versions
    try region.unmap()
    for page in 0..<Self.pages { race.check(store.durablePage(page), "at the end", page, atLeast: last, atMost: last) }
    #expect(race.findings.all == [])
    try space.close()
  }
}
