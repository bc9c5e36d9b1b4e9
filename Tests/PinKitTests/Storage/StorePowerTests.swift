import CTestSupport
import Foundation
import Testing

@testable import PinKit

/// Where there is no page cache to survive: a missing sync is seen.
@Suite("Stores on a disk that loses its power") struct StorePowerTests {
  /// Where a region's pages are, and whether they go around the page cache.
  struct Place: CustomTestStringConvertible, Codable, Sendable {
    var isDevice: Bool
    var isDirect: Bool
    var testDescription: String { "\(isDevice ? "the device itself" : "a file")\(isDirect ? ", direct" : "")" }
    var options: FileStore.Options { FileStore.Options { $0.direct = isDirect ? .required : .never } }

    static let all = [false, true].flatMap { device in [false, true].map { Place(isDevice: device, isDirect: $0) } }
  }

  private static let pages = 96
  /// From here on a thread writes pages while they are flushed; those before are written between two flushes.
  private static let restless = 48

  // What a child notes: the round that was flushed; of each restless page, the version that was flushed, and the one that was begun.
  private static func flushed(_ index: Int) -> Int { 1 + index }
  private static func begun(_ index: Int) -> Int { 1 + (pages - restless) + index }

  /// Writes pages and flushes them again and again, and notes what was flushed.
  private static func run(
    _ path: String, _ place: Place, _ notes: ChildNotes, _ power: ForgetfulDisk.Power, after requests: Int, seed: UInt64
  ) throws {
    let space = try AddressSpace()
    let region = try space.map(.file(try FileStore(path: path, options: place.options)), pages: pages)
    let start = UInt64(region.addresses.start)
    var round = notes[0]
    let done = (restless..<pages).map { (page: Int) -> Shared in
      let address = start + UInt64(page * 4096)
      // What survived counts; the last version that was begun may not have.
      return Shared(Int(min(ct_load_word(address), ct_load_word(address + 4088))))
    }
    try power.fail(after: requests, seed: seed)
    _ = HostThread {
      var random = SeededRandom(seed: seed)
      while true {
        let index = Int.random(in: 0..<done.count, using: &random)
        let (page, version) = (start + UInt64((restless + index) * 4096), notes[begun(index)] + 1)
        notes[begun(index)] = version
        ct_store_word(page, version)
        ct_store_word(page + 4088, version)
        done[index].value = Int(version)
      }
    }
    for _ in 0..<6 {
      round += 1
      for page in 0..<restless {
        for word in 0..<512 { ct_store_word(start + UInt64(page * 4096 + word * 8), round << 16 | UInt64(page)) }
      }
      let before = done.map(\.value)
      try region.flush()
      for (index, version) in before.enumerated() { notes[flushed(index)] = UInt64(version) }
      notes[0] = round
      _ = try region.reclaim(0..<pages)
    }
    // Not a moment after the last flush.
    try power.fail(seed: seed)
  }

  @Test(
    "The disk itself: what was flushed stays; of the rest some is there, some is not, and some is torn, as the seed has it",
    .enabled(if: ForgetfulDisk.isPossible, ForgetfulDisk.reason))
  func forgets() throws {
    let disk = try ForgetfulDisk(.nothing)
    func write(_ value: UInt64, flushes: Bool) throws {
      let store = try FileStore(path: disk.device, options: .init { $0.direct = .required })
      for page in 0..<60 { try store.put(page, value) }
      if flushes { try store.flush() }
      #expect(try disk.state.unstable == (flushes ? 0 : 60))
    }
    func sectors() throws -> [UInt8] {
      let store = try FileStore(path: disk.device)
      let buffer = try PageBuffer(60)
      try store.fill(buffer, 0..<60, from: 0..<60)
      return (0..<60).flatMap { page in (0..<8).map { buffer.byte(page, $0 * 512) } }
    }
    var survived: [[UInt8]] = []
    for seed: UInt64 in [5, 6, 5] {
      try write(1, flushes: true)
      try write(2, flushes: false)
      try disk.restore(seed: seed)
      survived.append(try sectors())
      let pages = stride(from: 0, to: 480, by: 8).map { Set(survived.last![$0..<$0 + 8]) }
      #expect([[1], [2], [1, 2]].allSatisfy { pages.contains($0) } && pages.allSatisfy { $0.isSubset(of: [1, 2]) })
    }
    #expect(survived[0] == survived[2] && survived[0] != survived[1])
    try write(3, flushes: true)
    try disk.restore(seed: 7)
    #expect(try sectors().allSatisfy { $0 == 3 })
  }

  @Test(
    "P3, W5: whenever the power fails, what flush() returned for is there, and each sector is old or new",
    .enabled(if: ForgetfulDisk.isPossible, ForgetfulDisk.reason), arguments: Place.all)
  func random(_ place: Place) async throws {
    let disk = try ForgetfulDisk(place.isDevice ? .nothing : .ext4)
    let notes = try ChildNotes(beside: disk)
    if !place.isDevice { try FileStore(path: disk("pages"), creating: Self.pages * Memory.pageSize).flush() }
    let base = Seed.base
    var random = SeededRandom(seed: base)
    var isCut = (early: 0, late: 0)
    for attempt in 0..<10 {
      let requests = Int.random(in: 1...(attempt % 2 == 0 ? 12 : 60), using: &random)
      let before = notes[0]
      await #expect(processExitsWith: .signal(SIGKILL), "seed \(base), attempt \(attempt)") {
        [
          path = disk("pages") as String, place = place as Place, notes = notes.path as String,
          power = disk.power as ForgetfulDisk.Power, requests = requests as Int, seed = base + UInt64(attempt) as UInt64
        ] in
        try StorePowerTests.run(path, place, ChildNotes(path: notes), power, after: requests, seed: seed)
      }
      if notes[0] == before + 6 { isCut.late += 1 } else { isCut.early += 1 }
      try disk.restore()
      try Self.expectFlushed(disk("pages"), notes, "seed \(base), attempt \(attempt), request \(requests)")
    }
    #expect(isCut.early > 0 && notes[0] > 0, "\(isCut)")
  }

  private static func expectFlushed(_ path: String, _ notes: ChildNotes, _ when: Comment) throws {
    let store = try FileStore(path: path)
    let buffer = try PageBuffer(pages)
    try store.fill(buffer, 0..<pages, from: 0..<pages)
    let bytes = unsafe buffer.bytes(0..<pages)
    func word(_ page: Int, _ offset: Int) -> UInt64 {
      unsafe bytes.loadUnaligned(fromByteOffset: page * 4096 + offset, as: UInt64.self)
    }
    let findings = Findings()
    func check(_ condition: Bool, _ text: @autoclosure () -> String) { if !condition { findings.note(text()) } }
    let unit = store.geometry.atomicUnit
    let flushed = notes[0]
    for page in 0..<restless {
      for sector in stride(from: 0, to: 4096, by: unit) {
        let found = word(page, sector)
        let isWhole = stride(from: 0, to: unit, by: 8).allSatisfy { word(page, sector + $0) == found }
        check(isWhole, "page \(page) has a torn sector")
        check(found == 0 || Int(found & 0xffff) == page, "page \(page) has the bytes of \(found & 0xffff)")
        let rounds = flushed...flushed + 1
        check(rounds.contains(found >> 16), "page \(page) is of round \(found >> 16), flushed was \(flushed)")
      }
    }
    for index in 0..<pages - restless {
      let page = restless + index
      let versions = notes[Self.flushed(index)]...notes[begun(index)]
      for found in [word(page, 0), word(page, 4088)] {
        check(versions.contains(found), "page \(page) has version \(found), not of \(versions)")
      }
      check(stride(from: 8, to: 4088, by: 8).allSatisfy { word(page, $0) == 0 }, "page \(page) has bytes that nobody wrote")
    }
    #expect(findings.all == [], when)
  }

  @Test(
    "P3: a new store's file is there, with its name, its size and its pages, once flush() has returned",
    .enabled(if: ForgetfulDisk.isPossible, ForgetfulDisk.reason))
  func created() async throws {
    let disk = try ForgetfulDisk(.ext4)
    let notes = try ChildNotes(beside: disk)
    let base = Seed.base
    for request in 1... {
      notes.forget()
      let name = "new\(request)"
      await #expect(processExitsWith: .signal(SIGKILL), "seed \(base), request \(request)") {
        [
          path = disk(name) as String, notes = notes.path as String, power = disk.power as ForgetfulDisk.Power,
          request = request as Int, seed = base + UInt64(request) as UInt64
        ] in
        let notes = try ChildNotes(path: notes)
        try power.fail(after: request, seed: seed)
        let store = try FileStore(path: path, creating: 40 * 4096)
        for page in 0..<5 { try store.put(page * 7, 77) }
        try store.flush()
        notes[0] = 1
        try power.fail(seed: seed)
      }
      try disk.restore()
      let isThere = FileManager.default.fileExists(atPath: disk(name))
      if notes[0] == 1 {
        try #require(isThere, "seed \(base), request \(request)")
        let store = try FileStore(path: disk(name))
        #expect(store.geometry.byteCount == 40 * 4096)
        for page in 0..<40 { #expect(try store.get(page) == (page % 7 == 0 && page < 35 ? 77 : 0), "page \(page)") }
        break
      }
      try #require(request < 100, "it never ends")
    }
  }
}
