import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// Who waits for whom around the bytes of a mirror or a window.
@Suite("Waiting for readers", .serialized) struct WindowWaitTests {
  @Test(
    "N4: a reader that stays inside holds a change up; one that comes later waits for the change alone",
    arguments: [false, true])
  func waits(isWindow: Bool) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    let mirror = try SecondaryMMU(region)
    let window = try DirectMapping(region, pages: 0..<8, for: .reading)
    let use: @Sendable (_ body: () -> Void) throws -> Void = { body in
      if isWindow {
        try unsafe window.withBytes { _ in body() }
      } else {
        try unsafe mirror.withBytes(of: 3, for: .reading) { _ in body() }
      }
    }
    let isInside = Shared()
    let mayLeave = Shared()
    let first = TestThread {
      try use {
        isInside.value = 1
        if !spin(until: { mayLeave.value == 1 }) { Issue.record("nobody lets the reader leave") }
      }
    }
    #expect(spin { isInside.value == 1 })
    let change = TestThread { try region.protect(3..<4) }
    // By now the change has begun: nobody comes in any more.
    #expect(spin { isWindow ? !window.isEstablished : !mirror.isTranslated(3) })
    let second = TestThread { try use {} }
    yieldForAWhile(milliseconds: 20)
    #expect(!change.hasEnded)
    #expect(!second.hasEnded)
    #expect(!region.table[3].contains(.writeDenied), "it changed under the reader")
    mayLeave.value = 1
    try first.join()
    try change.join()
    #expect(spin { second.hasEnded })
    try second.join()
    #expect(region.table[3].contains(.writeDenied))
    try space.close()
  }

  @Test("N4: a change waits for those who were inside, not for those who come after it")
  func newcomers() throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, pages: 64, .handlerThread)
    let mirror = try SecondaryMMU(clone)
    let isOver = Shared()
    let entries = [Shared(), Shared()]
    // Hand over hand: neither leaves before the other has come in, so that there is always one inside, of another page.
    let readers = (0..<2).map { index in
      TestThread {
        while isOver.value == 0 {
          try unsafe mirror.withBytes(of: 0, for: .reading) { _ in
            let seen = entries[1 - index].value
            entries[index].add()
            while isOver.value == 0, entries[1 - index].value == seen { sched_yield() }
          }
        }
      }
    }
    #expect(spin { entries[0].value > 10 })
    for _ in 0..<20 {
      try clone.protect(5..<6)
      try clone.protect(5..<6, to: .readWrite)
    }
    for page in 10..<20 { try clone.setWord(page, 0, 1) }
    isOver.value = 1
    for reader in readers { try reader.join() }
    #expect(try region.word(10) == 11)
    try space.close()
  }

  @Test("Where nobody should be kept waiting, a reader gets more time to leave each time that it was not enough")
  func patience() throws {
    let patience = ReaderPatience()
    let object: UInt = 0x1000
    for _ in 0..<2 {
      let isInside = Shared()
      let reader = TestThread {
        _ = CriticalSection.enter(object, of: 0)
        isInside.value = 1
        let end = Kernel.now() + 30_000_000
        while Kernel.now() < end { sched_yield() }
        CriticalSection.leave()
      }
      #expect(spin { isInside.value == 1 })
      var tries = 1
      while !patience.waitUntilEmpty(object, isBlockable: false) { tries += 1 }
      #expect(tries < 20)
      try reader.join()
    }
    let isEmpty = patience.waitUntilEmpty(object, isBlockable: true)
    #expect(isEmpty)
  }

  /// Every call on a region that could wait for a reader.
  private static func calls(_ region: Region, _ tracker: WriteTracker, _ snapshot: Snapshot) -> [PinError.Code?] {
    [
      errorCode { try region.protect(0..<1) }, errorCode { _ = try region.tryProtect(0..<1) },
      errorCode { try region.discard(0..<1) }, errorCode { _ = try region.tryDiscard(0..<1) },
      errorCode { _ = try region.snapshot() }, errorCode { _ = try region.clone() },
      errorCode { _ = try region.trackWrites() }, errorCode { _ = try tracker.collect() },
      errorCode { try tracker.pause() }, errorCode { try tracker.stop() }, errorCode { _ = try snapshot.word(0) },
      errorCode { _ = try region.pin(0..<1, .write) }, errorCode { _ = try region.lookUp(0) },
      errorCode { _ = try region.subscribe(RecordingNotifier()) }, errorCode { _ = try SecondaryMMU(region) },
      errorCode { _ = try region.testYoung(0..<1) }, errorCode { _ = try region.load(fromByteOffset: 0, as: UInt8.self) },
      errorCode { try region.store(UInt8(1), toByteOffset: 0) },
      errorCode { try unsafe region.withUnsafeMutableBytes { _ in } }, errorCode { try region.endSnapshots() },
      errorCode { _ = try region.space.subscribe(RecordingNotifier()) }, errorCode { try region.unmap() },
      errorCode { try region.space.close() },
    ]
  }

  @Test(
    "N8: inside withBytes every call that could wait for its own thread is refused, and nothing has changed",
    arguments: [false, true])
  func refused(isWindow: Bool) throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, .handlerThread)
    let mirror = try SecondaryMMU(clone, pages: 0..<8)
    let window = try DirectMapping(clone, pages: 0..<4)
    let second = try DirectMapping(clone, pages: 8..<9, for: .reading)
    let tracker = try clone.trackWrites()
    let snapshot = try clone.snapshot()
    let recorder = RecordingNotifier()
    let subscription = try clone.subscribe(recorder)
    let body = {
      let found = Self.calls(clone, tracker, snapshot)
      #expect(found.allSatisfy { $0 == .wouldDeadlock }, "\(found)")
      #expect(errorCode { _ = try mirror.word(7) } == .wouldDeadlock, "not translated yet")
      #expect(errorCode { _ = try second.word(8) } == .wouldDeadlock, "not up")
      // Another region is another matter.
      try region.setWord(2, 0, 20)
      try region.protect(1..<2)
    }
    _ = recorder.take()
    if isWindow {
      try unsafe window.withBytes { _ in
        _ = recorder.take()
        try body()
      }
    } else {
      try unsafe mirror.withBytes(of: 3, for: .reading) { _ in
        _ = recorder.take()
        try body()
      }
    }
    #expect(recorder.take() == [])
    #expect(try clone.word(2) == 3)
    #expect(try mirror.word(7) == 8 && second.word(8) == 9)
    try clone.protect(0..<1)
    subscription.remove()
    snapshot.close()
    try space.close()
  }

  @Test("Seven nested sections are possible, the eighth is an error")
  func nesting() throws {
    let space = try AddressSpace.forTests()
    let (region, clone) = try sharedPair(space, .handlerThread)
    let mirror = try SecondaryMMU(clone)
    _ = try mirror.word(3)
    @Sendable func nest(_ depth: Int) throws -> Int {
      try unsafe mirror.withBytes(of: 3, for: .reading) { _ in
        do { return try nest(depth + 1) } catch let error as PinError where error.code == .limitReached { return depth }
      }
    }
    #expect(try nest(1) == 7)
    let window = try DirectMapping(clone, pages: 0..<1)
    try clone.protect(3..<4)
    #expect(try nest(1) == 7)
    try window.setWord(0, 0, 9)
    #expect(try region.word(0) == 1)
    try space.close()
  }

  @Test("More than a thousand threads are too many, and those that end make room")
  func threads() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 4)
      let mirror = try SecondaryMMU(region)
      let window = try DirectMapping(region, pages: 0..<2)
      try window.setWord(0, 0, 1)
      _ = try mirror.word(0)
      // Nothing is ever written to it: they sleep until its other end is closed.
      var ends: [CInt] = [0, 0]
      check(unsafe pipe(&ends), is: 0)
      let (waits, mayEnd) = (ends[0], ends[1])
      let succeeded = Shared()
      let refused = Shared()
      var threads: [TestThread] = []
      for index in 0..<1030 {
        threads.append(
          TestThread {
            let code = errorCode { _ = try index % 2 == 0 ? mirror.word(0) : window.word(0) }
            if code == nil { succeeded.add() } else if code == .limitReached { refused.add() }
            var byte = UInt8(0)
            check(unsafe read(waits, &byte, 1), is: 0)
          })
        if index % 64 == 0 { _ = spin { succeeded.value + refused.value == index + 1 } }
      }
      check(spin { succeeded.value + refused.value == 1030 }, "\(succeeded.value) and \(refused.value)")
      check(succeeded.value, is: 1023)
      // Changes go on all the same.
      try region.protect(0..<1)
      close(mayEnd)
      for thread in threads { try thread.join() }
      close(waits)
      let late = TestThread { try check(mirror.word(0), is: 1) }
      try late.join()
      try space.close()
    }
  }
}
