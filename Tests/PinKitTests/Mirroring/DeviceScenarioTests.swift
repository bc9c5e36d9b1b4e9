import CTestSupport
import Synchronization
import Testing

@testable import PinKit

/// What a device does with the memory of a process, after the scenarios by which the kernel tests its own mirrors. Memory of the device's own
/// and access that shuts the processor out do not exist here: those scenarios have nothing to run against.
@Suite("A device and its mirror") struct DeviceScenarioTests {
  private static func count(_ subject: Subject) -> Int { subject == .hugetlb ? 4 : 64 }
  @Test("A mirror that is opened and closed leaves nothing behind", arguments: Subject.allCases)
  func openAndClose(_ subject: Subject) throws {
    let space = try AddressSpace.forTests()
    try subject.with(space, pages: Self.count(subject)) { region in
      for _ in 0..<20 {
        let mirror = try SecondaryMMU(region)
        mirror.close()
        mirror.close()
        #expect(errorCode { _ = try mirror.word(0) } == .stopped)
      }
      _ = try SecondaryMMU(region)
      #expect(region.attachments.find(RegionNotifications.self)?.isIdle == true)
      #expect(errorCode { _ = try SecondaryMMU(region, pages: 0..<region.pageCount + 1) } == .outOfBounds)
      #expect(errorCode { _ = try SecondaryMMU(region, pages: 0..<0) } == .invalidArgument)
    }
    try space.close()
  }

  @Test("It reads what the processor wrote, and zeros where nobody did", arguments: Subject.allCases)
  func reads(_ subject: Subject) throws {
    let space = try AddressSpace.forTests()
    let count = Self.count(subject)
    try subject.with(space, pages: count) { region in
      let last = region.pageSize / 8 - 1
      for page in 2..<count {
        try region.setWord(page, 0, UInt64(page))
        try region.setWord(page, last, UInt64(1000 + page))
      }
      let mirror = try SecondaryMMU(region)
      for page in 0..<count {
        #expect(try mirror.word(page) == (page < 2 ? 0 : UInt64(page)))
        #expect(try mirror.word(page, last) == (page < 2 ? 0 : UInt64(1000 + page)))
      }
      // Once it is translated nobody has to be asked.
      try region.setWord(3, 1, 7)
      #expect(try mirror.word(3, 1) == 7)
      #expect(errorCode { _ = try mirror.word(count) } == .outOfBounds)
    }
    try space.close()
  }

  @Test(
    "N1: what it writes the processor reads, whichever way writes are tracked, and trackers know",
    arguments: Combination.all)
  func writes(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    let count = Self.count(combination.subject)
    try combination.subject.with(space, pages: count) { region in
      let mirror = try SecondaryMMU(region)
      try mirror.setWord(0, 0, 1)
      let tracker = try region.trackWrites(combination.mechanism)
      for page in stride(from: 1, to: count, by: 2) { try mirror.setWord(page, 1, UInt64(page)) }
      for page in 0..<count { #expect(try region.word(page, 1) == (page % 2 == 1 ? UInt64(page) : 0)) }
      let set = try tracker.collect()
      for page in stride(from: 1, to: count, by: 2) { #expect(set.contains(page)) }
      #expect(!set.contains(2))
      // Nobody writes meanwhile, and it does not come again.
      #expect(try tracker.collect().isEmpty)
      for page in stride(from: 1, to: count, by: 2) { #expect(!mirror.isTranslated(page, for: .writing)) }
      try mirror.setWord(3, 1, 33)
      #expect(try tracker.collect().runs == [3..<4])
      try tracker.stop()
      try mirror.setWord(3, 1, 34)
      #expect(try region.word(3, 1) == 34)
    }
    try space.close()
  }

  @Test(
    "What may not be read is not translated, and what may not be written only for reading", arguments: Combination.all)
  func rights(_ combination: Combination) throws {
    let space = try AddressSpace.forTests()
    let count = Self.count(combination.subject)
    try combination.subject.with(space, pages: count) { region in
      for page in 0..<count { try region.setWord(page, 0, UInt64(page + 1)) }
      let tracker = try region.trackWrites(combination.mechanism)
      let mirror = try SecondaryMMU(region)
      for page in 0..<count { try mirror.setWord(page, 1, 5) }
      try region.protect(0..<count, to: .none)
      for page in 0..<count {
        #expect(!mirror.isTranslated(page))
        #expect(errorCode { _ = try mirror.word(page) } == .accessDenied)
        #expect(errorCode { try mirror.setWord(page, 0, 9) } == .accessDenied)
      }
      try region.protect(0..<count, to: .readOnly)
      for page in 0..<count {
        #expect(try mirror.word(page) == UInt64(page + 1))
        #expect(errorCode { try mirror.setWord(page, 0, 9) } == .accessDenied)
        #expect(try mirror.word(page) == UInt64(page + 1))
      }
      _ = try tracker.collect()
      // A right that comes is no reason to give anything up, but the next write is asked for.
      try region.protect(0..<count, to: .readWrite)
      try mirror.setWord(1, 0, 50)
      #expect(try region.word(1) == 50)
      #expect(try tracker.collect().runs == [1..<2])
    }
    try space.close()
  }

  @Test("Two mirrors of overlapping pages see each other's writes, and both lose what changes")
  func twoMirrors() throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, pages: 32, .handlerThread)
    let mirrors = [try SecondaryMMU(clone, pages: 0..<24), try SecondaryMMU(clone, pages: 8..<32)]
    for page in 8..<24 { for mirror in mirrors { #expect(try mirror.word(page) == UInt64(page + 1)) } }
    try mirrors[0].setWord(10, 0, 100)
    // The other has lost the frame that both had.
    #expect(!mirrors[1].isTranslated(10))
    #expect(try mirrors[1].word(10) == 100)
    try mirrors[1].setWord(10, 0, 101)
    #expect(try mirrors[0].word(10) == 101 && clone.word(10) == 101 && region.word(10) == 11)
    try clone.discard(8..<12)
    for mirror in mirrors { #expect(!mirror.isTranslated(8) && mirror.isTranslated(20)) }
    for mirror in mirrors { #expect(try mirror.word(10) == 0) }
    mirrors[0].close()
    try mirrors[1].setWord(20, 0, 7)
    #expect(try clone.word(20) == 7)
    try space.close()
  }

  @Test("N1: a write through the mirror of either side of a clone stays on that side", arguments: Mechanisms.synchronous)
  func sides(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, mechanism)
    let mine = try SecondaryMMU(region)
    let other = try SecondaryMMU(clone)
    for page in 0..<16 { #expect(try mine.word(page) == other.word(page)) }
    try mine.setWord(3, 0, 30)
    try other.setWord(4, 0, 40)
    try region.setWord(5, 0, 50)
    try clone.setWord(6, 0, 60)
    let third = try clone.clone()
    try other.setWord(7, 0, 70)
    #expect(try [3, 4, 5, 6, 7].map { try mine.word($0) } == [30, 5, 50, 7, 8])
    #expect(try [3, 4, 5, 6, 7].map { try other.word($0) } == [4, 40, 6, 60, 70])
    #expect(try [3, 4, 5, 6, 7].map { try third.word($0) } == [4, 40, 6, 60, 8])
    #expect(try [3, 4, 5, 6, 7].map { try region.word($0) } == [30, 5, 50, 7, 8])
    #expect(try [3, 4, 5, 6, 7].map { try clone.word($0) } == [4, 40, 6, 60, 70])
    // Alone at last: its frames are its own again, and stay where they are.
    let copies = space.counters[.copies]
    try region.unmap()
    try third.unmap()
    try other.setWord(9, 0, 90)
    #expect(try clone.word(9) == 90)
    #expect(space.counters[.copies] <= copies + 1)
    try space.close()
  }

  @Test("What the mirror knows is exactly what has not changed since")
  func state() throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, .handlerThread)
    let mirror = try SecondaryMMU(clone)
    let known = { (0..<16).filter { mirror.isTranslated($0) } }
    let writable = { (0..<16).filter { mirror.isTranslated($0, for: .writing) } }
    #expect(known() == [])
    for page in 2..<8 { _ = try mirror.word(page) }
    #expect(known() == Array(2..<8) && writable() == [])
    try mirror.setWord(3, 0, 1)
    try mirror.setWord(4, 0, 1)
    #expect(known() == Array(2..<8) && writable() == [3, 4])
    try clone.protect(4..<6, to: .readOnly)
    #expect(known() == [2, 3, 6, 7] && writable() == [3])
    try clone.discard(6..<7)
    #expect(known() == [2, 3, 7])
    let snapshot = try clone.snapshot()
    #expect(known().contains(7) && !known().contains(3) && writable() == [])
    try clone.setWord(7, 0, 1)
    #expect(!known().contains(7))
    snapshot.close()
    // Nothing that happens to its relatives matters.
    _ = try mirror.word(2)
    try region.setWord(2, 0, 99)
    try region.discard(0..<4)
    #expect(mirror.isTranslated(2))
    #expect(try mirror.word(2) == 3)
    try region.unmap()
    #expect(try mirror.word(2) == 3)
    try clone.unmap()
    #expect(known() == [])
    #expect(errorCode { _ = try mirror.word(2) } == .unmapped)
    try space.close()
  }
}
