import CTestSupport
import Glibc
import Testing

@testable import PinKit

/// How a page comes to leave a frame that others have.
enum Leaving: String, CaseIterable, Sendable, Codable {
  case write, discard, pin

  func run(_ region: Region, _ page: Int) throws {
    switch self {
    case .write: region.poke(99, page)
    case .discard: try region.discard(page..<page + 1)
    case .pin: try region.pin(page..<page + 1, .longTerm).unpin()
    }
  }
}

@Suite("The mapping of a page that left a shared frame") struct BrokenAwayTests {
  struct Case: Sendable, Codable, CustomStringConvertible {
    var mechanism: WriteTracking.Mechanism
    var leaving: Leaving
    var description: String { "\(leaving.rawValue), .\(mechanism)" }
    static let all = Leaving.allCases.flatMap { leaving in
      Mechanisms.synchronous.map { Case(mechanism: $0, leaving: leaving) }
    }
  }

  @Test(
    "W5: a page that left a shared frame is not inherited: a child that touches it gets SIGSEGV",
    .enabled(if: ct_has_thread_sanitizer() == 0, "the thread sanitizer has no child of fork()"), arguments: Case.all)
  func fork(_ example: Case) async {
    await #expect(processExitsWith: .success) { [example = example as Case] in
      ct_deadline(120)
      _ = ct_default(SIGSEGV)
      let space = try AddressSpace.forTests()
      let (region, clone) = try sharedPair(space, example.mechanism)
      for (one, other, page) in [(region, clone, 5), (clone, region, 9)] {
        try example.leaving.run(one, page)
        try check(one.frameState(page).frame != other.frameState(page).frame, "they share page \(page)")
        check(childStatus { CInt(one.peek(page)) }, is: 1000 + SIGSEGV, "reading page \(page)")
        let status = childStatus {
          one.poke(77, page)
          return 0
        }
        check(status, is: 1000 + SIGSEGV, "writing page \(page)")
        check(one.peek(page) != 77, "the child wrote the parent's page \(page)")
      }
      // A clone of what has broken away maps it from the first.
      let late = try region.clone(mechanism: example.mechanism)
      for page in [4, 5, 6] {
        check(childStatus { CInt(late.peek(page)) }, is: 1000 + SIGSEGV, "page \(page) of the next clone")
      }
      try space.close()
    }
  }

  @Test("S5: a page that left a shared frame is in no core dump if the region has a sealer", arguments: Leaving.allCases)
  func dump(_ leaving: Leaving) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 16)
    try region.setSealer(RecordingSealer())
    try region.fill(with: 3)
    let clone = try region.clone()
    for (one, other, page) in [(region, clone, 5), (clone, region, 9)] {
      try leaving.run(one, page)
      #expect(try one.frameState(page).frame != other.frameState(page).frame)
      let mappings = try ProcessMaps.allDetails(in: one.addresses)
      #expect(mappings.count > 1, "the page has a mapping of its own")
      for mapping in mappings { #expect(mapping.flags.contains("dd"), "\(mapping.mapping.range) of page \(page)'s region") }
    }
    let late = try region.clone()
    let mappings = try ProcessMaps.allDetails(in: late.addresses)
    #expect(mappings.count > 1, "it maps what has broken away")
    for mapping in mappings { #expect(mapping.flags.contains("dd"), "\(mapping.mapping.range) of the next clone") }
    try space.close()
  }

  @Test(
    "S5: what is written to such pages is nowhere but where no core dump looks",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer keeps copies, and maps terabytes"))
  func nowhere() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let secret = MemoryScan(count: 256)
      func place(_ region: Region, _ page: Int) throws {
        try unsafe region.withUnsafeMutableBytes { bytes in
          unsafe secret.place(in: UnsafeMutableRawBufferPointer(rebasing: bytes[page * 4096..<(page + 1) * 4096]))
        }
      }
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 16)
      try region.setSealer(RecordingSealer())
      try region.fill(with: 3)
      let clone = try region.clone()
      try region.discard(4..<5)
      try clone.discard(7..<8)
      for (region, page) in [(region, 3), (region, 4), (clone, 6), (clone, 7)] { try place(region, page) }
      // The pool maps them, too, and what it maps is in no core dump.
      var places = secret.places(of: 0..<64)
      check(places.count >= 4, "\(places.count) places")
      for place in places {
        try check(ProcessMaps.details(at: UInt(place)).flags.contains("dd"), "\(String(place, radix: 16)) is in a core dump")
      }
      // A region without a sealer is in one.
      let ordinary = try space.map(.pool, pages: 2)
      try place(ordinary, 1)
      places = secret.places(of: 0..<64)
      try check(places.contains { try !ProcessMaps.details(at: UInt($0)).flags.contains("dd") }, "the search finds nothing")
      try space.close()
    }
  }
}
