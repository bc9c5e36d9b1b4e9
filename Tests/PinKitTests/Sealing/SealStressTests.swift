import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("Sealing, raced") struct SealStressTests {
  private static let pages = 24

  /// A word that says which page it is of, and which version; a sealed byte in it shows.
  private static func word(_ page: Int, _ version: UInt64) -> UInt64 { 0x5EA1_0000_0000_0000 | UInt64(page) << 40 | version }

  private final class Race: Sendable {
    let region: Region
    let sealer: RecordingSealer
    let findings = Findings()
    let isOver = Shared()
    /// How many have been promised the bytes of a page.
    let promised = (0..<SealStressTests.pages).map { _ in Shared() }
    let done = (0..<SealStressTests.pages).map { _ in Shared() }
    let (accesses, ios, seals, busy, copies) = (Shared(), Shared(), Shared(), Shared(), Shared())

    init(_ region: Region, _ sealer: RecordingSealer) {
      self.region = region
      self.sealer = sealer
      for page in 0..<SealStressTests.pages { write(0, page, at: region.addresses.start) }
      sealer.onSeal { [unowned self] page in
        if promised[page].value != 0 { findings.note("page \(page) was sealed under I/O") }
      }
    }

    func write(_ version: UInt64, _ page: Int, at start: UInt) {
      ct_store_word(UInt64(start) + UInt64(page * 4096), SealStressTests.word(page, version))
      ct_store_word(UInt64(start) + UInt64(page * 4096 + 4088), SealStressTests.word(page, version))
    }

    func check(_ first: UInt64, _ last: UInt64, _ page: Int, _ what: String) {
      Tally.add(.checks, 2)
      for word in [first, last] where word >> 40 != SealStressTests.word(page, 0) >> 40 {
        findings.note("\(what) saw \(String(word, radix: 16)) in page \(page)")
      }
    }

    /// Reads and writes through pointers; each page has one writer.
    func touch(_ thread: Int) {
      var random = SeededRandom(seed: Seed.of(thread + 1))
      while isOver.value == 0 {
        let page = Int.random(in: 0..<SealStressTests.pages, using: &random)
        let start = region.addresses.start
        if page % 2 == thread {
          let version = UInt64(done[page].value) + 1
          write(version, page, at: start)
          done[page].value = Int(version)
        } else {
          let before = UInt64(done[page].value)
          let word = ct_load_word(UInt64(start) + UInt64(page * 4096))
          check(word, ct_load_word(UInt64(start) + UInt64(page * 4096 + 4088)), page, "a pointer")
          if word & 0xff_ffff_ffff < before { findings.note("page \(page) lost a write") }
        }
        accesses.add()
        Tally.add(.operations)
        if random.next() % 4 == 0 { Kernel.pause(nanoseconds: 10_000) }
      }
    }

    /// Does I/O: pins and lookups.
    func transfer(_ thread: Int) {
      var random = SeededRandom(seed: Seed.of(thread + 50))
      while isOver.value == 0 {
        let page = Int.random(in: 0..<SealStressTests.pages, using: &random)
        do {
          if random.next() % 3 == 0 {
            // The page may leave the frame that was found, for a clone's sake, and be sealed in another one; the bytes of this one stay.
            let reference = try region.lookUp(page)
            var bytes = [UInt8](repeating: 0, count: 4096)
            for _ in 0..<3 {
              try unsafe bytes.withUnsafeMutableBytes { try unsafe reference.copy(into: $0) }
              checkBytes(bytes, page, "a lookup")
            }
            _ = consume reference
          } else {
            let pin = try region.pin(page..<page + 1, random.next() % 2 == 0 ? .write : [])
            promised[page].add()
            for _ in 0..<Int(random.next() % 20) {
              let (first, last) = unsafe pin.withUnsafeBytes { bytes in
                (
                  ct_load_word(UInt64(UInt(bitPattern: bytes.baseAddress!))),
                  ct_load_word(UInt64(UInt(bitPattern: bytes.baseAddress!)) + 4088)
                )
              }
              check(first, last, page, "a pin")
            }
            promised[page].add(-1)
            pin.unpin()
          }
          ios.add()
        } catch { findings.note("\(error)") }
      }
    }

    private func checkBytes(_ bytes: [UInt8], _ page: Int, _ what: String) {
      unsafe bytes.withUnsafeBytes {
        unsafe check($0.loadUnaligned(as: UInt64.self), $0.loadUnaligned(fromByteOffset: 4088, as: UInt64.self), page, what)
      }
    }

    func seal(_ thread: Int) {
      var random = SeededRandom(seed: Seed.of(thread + 90))
      while isOver.value == 0 {
        let start = Int.random(in: 0..<SealStressTests.pages, using: &random)
        let end = min(SealStressTests.pages, start + 1 + Int(random.next() % 4))
        do throws(PinError) {
          if random.next() % 6 == 0 {
            try region.makeAccessible(start..<end)
          } else {
            try region.seal(start..<end)
            seals.add()
          }
        } catch {
          if error.code == .busy { busy.add() } else { findings.note("\(error)") }
        }
      }
    }

    func copy() {
      var random = SeededRandom(seed: Seed.of(3))
      while isOver.value == 0 {
        do {
          if random.next() % 2 == 0 {
            let snapshot = try region.snapshot()
            for page in 0..<SealStressTests.pages {
              var bytes = try snapshot.read(page)
              if let record = try snapshot.seal(of: page) {
                try unsafe bytes.withUnsafeMutableBytes { bytes in
                  try unsafe record.bytes.withUnsafeBytes {
                    try unsafe sealer.open(bytes, identity: record.identity, record: $0)
                  }
                }
              }
              checkBytes(bytes, page, "a snapshot")
            }
            snapshot.close()
          } else {
            let clone = try region.clone()
            for page in 0..<SealStressTests.pages { checkBytes(try clone.bytes(of: page), page, "a clone") }
            try clone.unmap()
          }
          copies.add()
        } catch { findings.note("\(error)") }
        Kernel.pause(nanoseconds: 500_000)
      }
    }
  }

  /// Runs until `rounds` seals have gone through, and everybody else has had a turn.
  private func race(rounds: Int) throws {
    let space = try AddressSpace()
    let region = try space.map(.pool, pages: Self.pages)
    let sealer = RecordingSealer()
    try region.setSealer(sealer)
    let race = Race(region, sealer)
    let threads =
      (0..<2).map { index in TestThread { race.touch(index) } }
      + (0..<2).map { index in TestThread { race.transfer(index) } }
      + (0..<2).map { index in TestThread { race.seal(index) } } + [TestThread { race.copy() }]
    while race.seals.value < rounds || race.busy.value < 10 || race.copies.value < 30 || race.ios.value < rounds {
      Kernel.pause(nanoseconds: 2_000_000)
      if !race.findings.isEmpty { break }
    }
    race.isOver.value = 1
    for thread in threads { try thread.join() }
    for page in 0..<Self.pages where race.findings.isEmpty {
      let word = try region.load(fromByteOffset: page * 4096, as: UInt64.self)
      #expect(word == Self.word(page, UInt64(race.done[page].value)))
    }
    #expect(race.findings.all == [])
    #expect(space.statistics.openedSeals > 0 && race.busy.value > 0)
    try space.close()
  }

  @Test(
    "S1, S2, S5: no I/O sees a sealed byte, and no page is sealed under I/O, whoever seals, opens, pins, copies and clones")
  func race() throws { try race(rounds: environmentNumber("PINKIT_SEAL_ROUNDS", or: 400)) }
}

extension Region {
  fileprivate func bytes(of page: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: pageSize)
    try unsafe bytes.withUnsafeMutableBytes { try unsafe copy(fromByteOffset: page * pageSize, into: $0) }
    return bytes
  }
}
